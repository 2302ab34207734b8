"""redirectd: turns kernel and network events into commands, and carries the commands out."""
