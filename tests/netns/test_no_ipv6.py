"""A host whose kernel was started with ipv6.disable=1, and peers that name addresses of both families."""

from __future__ import annotations

import sys
import time

from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_ticker
from redirectctl.lab.topology import FIRST_HOST, Lab

# For this process: no socket of that family, no files about it in /proc, and rtnetlink is asked about a family that
# the kernel does not have indeed (AF_DECnet, gone since Linux 6.1): EOPNOTSUPP.
WITHOUT = """
import errno, os, socket, sys
from pathlib import Path
from types import SimpleNamespace
made, there, exists = socket.socket.__init__, os.path.exists, Path.exists
def make(self, family=-1, *arguments, **more):
    if family == socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    made(self, family, *arguments, **more)
socket.socket.__init__ = make
gone = lambda path: str(path).startswith("/proc/") and str(path).endswith(("/if_inet6", "/net/ipv6"))
os.path.exists = lambda path: not gone(path) and there(path)
Path.exists = lambda self, **more: not gone(self) and exists(self, **more)
from redirectctl.kernel.routing import lookup
lookup.socket = SimpleNamespace(**vars(socket) | {"AF_INET6": 12})
from redirectctl.redirectd import main
sys.exit(main())
"""


def test_a_host_without_ipv6_moves_whatever_its_peers_name(lab: Lab) -> None:
    for network in (lab.home, lab.cafe):
        network.only(4)
    lab.client.move(lab.home, FIRST_HOST + 1)
    client = Daemon(lab.client, FAST, command=[sys.executable, "-c", WITHOUT])
    pair = Pair(lab, daemons=(client, Daemon(lab.server, FAST)))
    assert lab.server.address(6).version == 6
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    for host, network, number in ((lab.client, lab.cafe, 20), (lab.server, lab.dc2, 21), (lab.client, lab.home, 22)):
        since = time.time()
        link = host.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        pair.wait_moved(client if host is lab.client else pair.server, since)
    assert client.doctor() == {}
    verdict = ticker.stop()
    assert verdict.ok, verdict
