"""Layouts: what every datagram and every packet we build looks like, byte by byte.  Pure."""
