"""From prompts to a mask: queries, zoom, logits, caches."""
