"""From prompts to a mask: windows, queries, logits, caches."""
