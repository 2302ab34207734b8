"""redirectctl keeps TCP connections alive when a host's IP address changes."""

__version__ = "0.1.0"
