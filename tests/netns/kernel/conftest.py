"""Fixtures of the kernel tests: see two_hosts for the network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from two_hosts import Host, Net


@pytest.fixture
def net() -> Iterator[Net]:
    if os.geteuid() != 0:
        pytest.skip("needs root: builds network namespaces")
    net = Net()
    try:
        yield net
    finally:
        net.close()


@pytest.fixture
def bob(net: Net) -> Host:
    host = net.host("bob")
    net.join(host, 1, 10)
    return host


@pytest.fixture
def alice(net: Net) -> Host:
    host = net.host("alice")
    net.join(host, 3, 10)
    return host
