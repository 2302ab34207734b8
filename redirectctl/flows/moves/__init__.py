"""Address changes: ours, and those that peers announce."""
