"""redirectctl: one file a subcommand."""
