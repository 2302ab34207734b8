"""Talking to one other daemon: Noise handshakes, sessions, cookies, replay windows.  Pure."""
