"""Both hosts move at once: the server's name in DNS, which it keeps up to date, leads the client to it again.

The name server is BIND, the sessions are of real ssh, and nobody told redirectd the name: it is the one on ssh's
command line.  REDIRECTCTL_MEETINGS says how many times both move in the first test (2).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest
from daemon_pair import FAST, PATIENCE, Pair
from name_server import ZONE, NameServer, needs_named

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Lab

pytestmark = needs_named

MEETINGS = int(os.environ.get("REDIRECTCTL_MEETINGS", "2"))
SIZE = 48 << 20  # bytes of each copy
KBIT = 40_000  # so that it takes 10 s
NAME = f"server.{ZONE}"


class NamedPair(Pair):
    """A pair whose server keeps its name up to date, and whose client knows no more than that name."""

    def __init__(self, lab: Lab, *, client: str = FAST, server: str = FAST, **dns: object) -> None:
        self.names = NameServer(lab, lab.office)
        self.lab = lab
        command = self.names.resolving([program("redirectd")])
        self.client = Daemon(lab.client, client, command=command)
        self.server = Daemon(lab.server, server + self.names.configure("server", **dns), command=command)
        self.daemons = (self.client, self.server)
        for daemon in self.daemons:
            daemon.start()
        self.wait_name()

    def wait_name(self) -> None:
        """Until the name leads to where the server is."""
        here = {str(self.lab.server.address(4)), str(self.lab.server.address(6))}
        wait_until(lambda: self.names.addresses("server") == here, PATIENCE, f"{NAME} is {here}", poll=0.1)

    def by_name(self, sshd: SshServer, *argv: str, version: int = 4) -> list[str]:
        """ssh or scp, opted in, that find the server by its name."""
        config = sshd.directory / "by_name"
        config.write_text((sshd.directory / "ssh_config").read_text().replace("Host server", "Host *"))
        command, *rest = argv
        return self.names.resolving([*self.wrap, command, "-F", str(config), f"-{version}", *rest])


def both_leave(lab: Lab) -> None:
    lab.client.leave()
    lab.server.leave()


@pytest.mark.parametrize("version", [4, 6])
def test_both_hosts_change_address_in_the_same_second(lab: Lab, tmp_path: Path, version: int) -> None:
    pair = NamedPair(lab)
    sshd = SshServer(lab.server)
    original = tmp_path / "original"
    original.write_bytes(os.urandom(SIZE))
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    terminal = Terminal(lab.client, pair.by_name(sshd, "ssh", NAME, version=version))
    peer = pair.client.wait_peer("approved")
    wait_until(lambda: f"is called {NAME}." in pair.client.report(), PATIENCE, "the name is learnt", poll=0.1)
    assert pair.client.ctl("peers")[0]["names"] == [f"{NAME}."]
    client, server = lab.client_journey(), lab.server_journey()
    gaps = []
    for number in range(MEETINGS):
        argv = pair.by_name(sshd, "scp", "-l", str(KBIT), str(original), f"{NAME}:copy{number}", version=version)
        copy = lab.client.popen(argv, stderr=subprocess.PIPE)
        pair.wait_protected(2)
        assert copy.poll() is None
        old = lab.client.address(version), lab.server.address(version)
        both_leave(lab)
        began = time.time()
        lab.server.join(*next(server))
        lab.client.join(*next(client))
        for host, address in zip((lab.client, lab.server), old, strict=True):
            assert not host.has_address(address)
        assert terminal.run(f"echo $(({number} + 1000))", PATIENCE) == f"{number + 1000}\n"
        gaps.append(time.time() - began)
        _, complaints = copy.communicate(timeout=PATIENCE)
        assert (copy.returncode, complaints) == (0, "")
        target = sshd.home / f"copy{number}"
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
        target.unlink()
        assert pair.wait_moved(pair.client, began)
        pair.wait_name()
    print(f"\nIPv{version}: {MEETINGS} rounds, typed and answered after {', '.join(f'{gap:.1f}' for gap in gaps)} s")
    assert terminal.leave() == 0
    assert pair.server.events("dns.updated")
    assert not pair.server.events("dns.failed")
    assert not pair.client.events("peer.key_changed")
    assert pair.client.ctl("peers")[0]["fingerprint"] == peer["fingerprint"]
    checks = {check["name"]: check for check in pair.client.ctl("doctor", peer["fingerprint"])}
    assert checks["peer.names"]["status"] == "ok", checks["peer.names"]


def test_a_name_that_lies_redirects_nothing(lab: Lab) -> None:
    """It leads to another host that runs redirectd: nothing goes there, and the key that is known stays so."""
    names = NameServer(lab, lab.office, records={"lie": str(lab.cafe.addresses(66).v4)})
    lab.stranger.join(lab.cafe, 66)
    other = Daemon(lab.stranger, FAST)
    other.start()
    client = Daemon(lab.client, FAST, command=names.resolving([program("redirectd")]))
    server = Daemon(lab.server, FAST)
    client.start()
    server.start()
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("protected", timeout=PATIENCE)
    (peer,) = client.ctl("peers")
    client.config.write_text(FAST + f'[dns.names]\n"{peer["fingerprint"][:20]}" = "lie.{ZONE}"\n')
    client.reload()
    wait_until(lambda: client.ctl("peers")[0].get("names") == [f"lie.{ZONE}"], PATIENCE, "the name", poll=0.1)
    both_leave(lab)
    server.restart()  # no session survives it: the handshakes go where the name leads, too
    client.restart()
    lab.client.join(lab.home, 77)
    lab.server.join(lab.dc2, 77)
    refused = client.wait_event("redirect.refused", reason="another-host-there", timeout=PATIENCE)
    assert refused["address"] == str(lab.stranger.address())
    (connection,) = client.ctl("connections")
    assert connection["wire_remote"].startswith(f"{lab.dc1.addresses(10).v4}:")
    assert other.ctl("connections") == []
    assert other.ctl("peers") == []
    (known,) = client.ctl("peers")
    assert (known["fingerprint"], known["addresses"]) == (peer["fingerprint"], peer["addresses"])
    lab.server.move(lab.dc1, 10)  # back to where it is known to be
    ticker.wait_both(time.monotonic(), PATIENCE)
    assert not client.events("peer.key_changed")
    verdict = ticker.stop()
    assert verdict.ok, verdict
