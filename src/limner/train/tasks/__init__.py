"""Training tasks: what is learnt from a batch."""
