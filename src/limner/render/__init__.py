"""Pictures of results: overlays, panels, films."""
