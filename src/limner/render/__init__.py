"""Rendering of results: overlays, multiplanar panels, films of a propagation."""
