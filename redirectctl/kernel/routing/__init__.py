"""Interfaces, addresses, routes and rules, as `ip` lists them: their changes, and what moved connections need there."""
