"""TCP sockets of this network namespace, of whatever program: which there are, their state, and second descriptors."""
