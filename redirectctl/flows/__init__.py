"""Connections: their states, socket and wire tuples, and how they move.  Pure."""
