"""Panes and dialogs of the terminal UI."""
