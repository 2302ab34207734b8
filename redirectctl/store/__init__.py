"""What survives a restart: own key, peers, connections, epochs.  SQLite."""
