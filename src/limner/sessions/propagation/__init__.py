"""Propagation of masks to other frames and slices."""
