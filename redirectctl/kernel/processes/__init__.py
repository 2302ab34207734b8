"""Processes: whose socket is it, and cgroups by which a command opts in."""
