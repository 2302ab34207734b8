"""The packet filter rules of others: what they do with the datagrams of our control port."""
