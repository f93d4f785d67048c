"""Training of the built-in models. Needs PyTorch; importing this file does not."""
