"""The interactive benchmark: sessions, a simulated user, and what they scored."""
