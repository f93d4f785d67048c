"""What training tasks are made of: rounds of prompts, rollouts over frames, validation, weights."""
