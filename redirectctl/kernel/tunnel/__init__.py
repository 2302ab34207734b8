"""The tunnel: what goes into `redirect0` travels to the peer in UDP datagrams."""
