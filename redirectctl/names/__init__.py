"""DNS: which words are names of hosts, looking names up, keeping our own name up to date."""
