"""Trained networks as the files that the package ships."""
