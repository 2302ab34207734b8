"""The Linux side: netlink, inet_diag, nftables, NFQUEUE, raw sockets.  Mechanism, no policy."""
