"""Bytes that nobody means well with, for everything that reads from the network."""
