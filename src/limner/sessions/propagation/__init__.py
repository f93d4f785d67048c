"""Masks carried to other frames and slices."""
