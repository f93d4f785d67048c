"""The log of a session: events, undo and redo, journal, manifest."""
