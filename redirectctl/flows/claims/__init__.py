"""How both ends of a connection prove that it is theirs: claims of ours, and those of peers."""
