"""How packets travel, and what becomes of connections for which there is no path."""
