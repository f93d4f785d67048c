"""Training as SegVol's authors did it: masked volumes, then prompts, words and pseudo labels."""
