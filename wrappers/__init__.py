"""redirect-run: runs a command opted in."""
