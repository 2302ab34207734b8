"""What clients and the daemon say to each other over the Unix socket."""
