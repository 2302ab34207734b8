"""The terminal UI (redirectctl tui)."""
