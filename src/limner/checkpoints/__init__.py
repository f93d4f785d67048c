"""Weights files: read without running code from them, and fit strictly onto a network."""
