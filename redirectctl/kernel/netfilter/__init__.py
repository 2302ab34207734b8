"""nftables, the iptables rules beside it, and NFQUEUE: how packets of connections are rewritten, or handed to us."""
