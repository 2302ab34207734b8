"""Hosts that find each other at a third one."""
