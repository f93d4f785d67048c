"""Shared parts of model adapters: protocols, axes, intensity, resizing, prompt encoding."""
