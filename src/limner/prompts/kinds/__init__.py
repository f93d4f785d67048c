"""Kinds of prompt, one file each; `limner.prompts.types` lists them."""
