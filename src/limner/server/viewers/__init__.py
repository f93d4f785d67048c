"""Protocols of viewers over the sessions of the server: one module each."""
