"""Simulated users on batches of tensors."""
