"""Widgets of the terminal UI: no I/O, immutable values in, messages out."""
