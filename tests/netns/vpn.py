"""A VPN of the client: two TUN devices, and nothing on the network between them."""

from __future__ import annotations

import subprocess
import sys

from redirectctl.lab.topology import Lab

# One in each of two network namespaces: what goes into one comes out of the other.
TUNNEL = """
import ctypes, fcntl, os, select, struct, sys
ends = []
for path in sys.argv[1:]:
    with open(path) as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0x40000000) == 0
    ends.append(os.open("/dev/net/tun", os.O_RDWR))
    fcntl.ioctl(ends[-1], 0x400454CA, struct.pack("16sH22x", b"vpn0", 0x1001))  # IFF_TUN, IFF_NO_PI
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        packet = os.read(end, 65536)
        try:
            os.write(ends[1 - ends.index(end)], packet)
        except OSError:
            pass  # it is not up yet
"""
V4, V6 = "10.8.0", "2001:db8:8:"  # its networks
METRIC = 5  # of its default routes: better than any network's


class Vpn:
    """By which the client reaches the server's network, or everything; its other end is the router."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._process: subprocess.Popen[str] | None = None

    def up(self, number: int = 2) -> str:
        """Make it, for the server's first network and IPv4; the client's address in it."""
        address, server = f"{V4}.{number}", self._lab.dc1.v4
        self._make(f"address add {address}/24 dev vpn0", f"route add {server} dev vpn0 src {address}")
        return address

    def up_for_all(self, number: int = 2) -> None:
        """Make it and lead all there, both families; with a source that is not of it nothing gets out of it."""
        sources = f"iifname vpn0 ip saddr != {V4}.0/24 drop\niifname vpn0 ip6 saddr != {{ {V6}:/64, fe80::/10 }} drop"
        chain = f"chain c {{ type filter hook prerouting priority -300\n{sources}\n }}\n"
        script = f"table inet vpn\ndelete table inet vpn\ntable inet vpn {{ {chain} }}\n"
        self._lab.router.run(["nft", "-f", "-"], stdin=script)
        self._make(
            f"address add {V4}.{number}/24 dev vpn0",
            f"address add {V6}:{number:x}/64 dev vpn0 nodad",
            *(f"route add {everything} dev vpn0 metric {METRIC}" for everything in ("0.0.0.0/0", "::/0")),
        )

    def _make(self, *lines: str) -> None:
        client, router = self._lab.client, self._lab.router
        self._process = client.popen([sys.executable, "-c", TUNNEL, client.path, router.path], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        router.ip(f"address add {V4}.1/24 dev vpn0", f"address add {V6}:1/64 dev vpn0 nodad", "link set vpn0 up")
        client.ip("link set vpn0 up", *lines)

    def down(self) -> None:
        """Its devices go with it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
