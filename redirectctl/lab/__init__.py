"""Hosts in network namespaces on one machine: for the demo, the namespace tests and the benchmarks."""
