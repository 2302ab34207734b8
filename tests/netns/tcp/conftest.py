"""The wire of socket_lab.py as a fixture."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.netns.tcp.socket_lab import Host, Wire, run


@pytest.fixture
def wire() -> Iterator[Wire]:
    tag = uuid.uuid4().hex[:6]
    alice = Host(f"ks-a-{tag}", "a0", "02:00:00:00:00:01", {4: "10.99.0.1", 6: "fd99::1"})
    bob = Host(f"ks-b-{tag}", "b0", "02:00:00:00:00:02", {4: "10.99.0.2", 6: "fd99::2"})
    made = Wire(alice, bob)
    try:
        for host in (alice, bob):
            run("ip", "netns", "add", host.name)
            host.run("ip", "link", "set", "lo", "up")
        alice.run("ip", "link", "add", "a0", "type", "veth", "peer", "name", "b0", "netns", bob.name)
        for host in (alice, bob):
            host.run("ip", "address", "add", f"{host.addresses[4]}/24", "dev", host.device)
            host.run("ip", "address", "add", f"{host.addresses[6]}/64", "dev", host.device, "nodad")
            host.run("ip", "link", "set", host.device, "address", host.mac, "up")
        for host, other in ((alice, bob), (bob, alice)):
            for address in other.addresses.values():  # neighbour discovery is not what is tested
                host.run("ip", "neigh", "replace", address, "lladdr", other.mac, "dev", host.device)
        yield made
    finally:
        for connection in made.connections:
            connection.close()
        for listener in made.listeners.values():
            listener.close()
        for host in (alice, bob):
            run("ip", "netns", "delete", host.name, check=False)
