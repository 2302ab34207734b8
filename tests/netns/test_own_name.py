"""redirectd keeps its host's name up to date at a real name server (BIND), and says why when it cannot."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable

import pytest
from daemon_pair import FAST, PATIENCE
from name_server import ZONE, NameServer, needs_named

from redirectctl.lab.daemons import CommandError, Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Lab

pytestmark = needs_named

NAME = f"server.{ZONE}"


@pytest.fixture
def names(lab: Lab) -> NameServer:
    return NameServer(lab, lab.office, names=("server", "other"))


Start = Callable[..., Daemon]


@pytest.fixture
def start(lab: Lab, names: NameServer) -> Start:
    """Start a daemon on the server, with these settings of its name besides the usual ones."""

    def started(**settings: object) -> Daemon:
        daemon = Daemon(
            lab.server,
            FAST + names.configure("server", **settings),
            command=names.resolving([program("redirectd")]),
        )
        daemon.start()
        return daemon

    return started


def leads_to(names: NameServer, *addresses: object) -> None:
    wanted = {str(address) for address in addresses}
    wait_until(lambda: names.addresses("server") == wanted, PATIENCE, f"{NAME} is {wanted}", poll=0.1)


def doctor(daemon: Daemon) -> dict[str, str]:
    """The check of the name; the others may fail or not."""
    try:
        checks = daemon.ctl("doctor")
    except CommandError:
        checks = _failed(daemon)
    return next(check for check in checks if check["name"] == "dns.name")


def _failed(daemon: Daemon) -> list[dict[str, str]]:
    argv = [program("redirectctl"), "--socket", str(daemon.socket), "--json", "doctor"]
    found: list[dict[str, str]] = json.loads(daemon.host.run(argv, check=False).stdout)
    return found


def test_it_follows_the_addresses(lab: Lab, names: NameServer, start: Start) -> None:
    daemon = start(server=f"ns.{ZONE}:53")
    leads_to(names, *lab.server.links[0].addresses)
    assert doctor(daemon)["status"] == "ok"
    lab.server.move(lab.dc2, 20)
    leads_to(names, *lab.server.links[0].addresses)
    lab.server.join(lab.dc1, 21)
    leads_to(names, *(a for link in lab.server.links for a in link.addresses))
    lab.server.leave(lab.dc2)
    leads_to(names, *lab.server.links[0].addresses)
    lab.dc2.only(6)
    lab.server.move(lab.dc2, 22)  # no IPv4 any more: neither is its record
    leads_to(names, lab.server.links[0].addresses.v6)
    assert doctor(daemon)["status"] == "ok"
    daemon.stop()
    leads_to(names, lab.server.links[0].addresses.v6)


def test_private_addresses_only_where_wanted(lab: Lab, names: NameServer, start: Start) -> None:
    lab.server.ip("address add 10.1.2.3/24 dev eth0", "address add fd00::3/64 dev eth0 nodad")
    daemon = start()
    leads_to(names, *lab.server.links[0].addresses)
    daemon.config.write_text(FAST + names.configure("server", private=True))
    daemon.reload()
    leads_to(names, *lab.server.links[0].addresses, "10.1.2.3", "fd00::3")


def test_a_server_that_is_away_gets_it_when_it_is_back(lab: Lab, names: NameServer, start: Start) -> None:
    names.stop()
    daemon = start()
    failed = daemon.wait_event("dns.failed", timeout=PATIENCE)
    assert failed["reason"] == "no-answer-from-server"
    assert doctor(daemon)["status"] == "fail"
    names.start()
    leads_to(names, *lab.server.links[0].addresses)
    daemon.wait_event("dns.updated", timeout=PATIENCE)
    assert len(daemon.events("dns.failed")) == 1, "not one for each try"
    assert doctor(daemon)["status"] == "ok"


def test_an_address_that_comes_before_its_route_is_no_failure(lab: Lab, names: NameServer, start: Start) -> None:
    daemon = start()
    leads_to(names, *lab.server.links[0].addresses)
    (link,) = lab.server.links
    another, gateway = link.network.addresses(20).v4, link.network.addresses(1).v4
    lab.server.ip(
        "route delete default",
        f"address delete {link.addresses.v4}/24 dev {link.interface}",
        f"address add {another}/24 dev {link.interface}",
    )
    wait_until(lambda: "not up to date" in daemon.report(), PATIENCE, "an update that fails", poll=0.01)
    lab.server.ip(f"route add default via {gateway} dev {link.interface}")
    leads_to(names, another, link.addresses.v6)
    wait_until(lambda: len(daemon.events("dns.updated")) == 2, PATIENCE, "it is told", poll=0.1)
    assert daemon.events("dns.failed") == []


REFUSALS: list[tuple[dict[str, object], str]] = [
    ({"name": f"other.{ZONE}"}, "refused-by-server"),  # not this key's
    ({"server": "203.0.113.53:9"}, "no-answer-from-server"),
    ({"zone": "example"}, "refused-by-server"),
    ({"server": f"nobody.{ZONE}:53"}, "no-answer-from-server"),
    ({"key_file": "/nonexistent/key"}, "key-file"),
]


def test_refusals(names: NameServer, start: Start) -> None:
    daemon = start(**REFUSALS[0][0])
    for number, (settings, reason) in enumerate(REFUSALS, 1):
        daemon.config.write_text(FAST + names.configure("server", **settings))
        daemon.reload()
        wait_until(lambda: len(daemon.events("dns.failed")) >= number, PATIENCE, f"{settings}", poll=0.1)  # noqa: B023
        assert daemon.events("dns.failed")[-1]["reason"] == reason, settings
        assert doctor(daemon)["status"] == "fail"
        assert names.addresses("server") == names.addresses("other") == set()


def of_another_name(good: str) -> str:
    return good.replace('key "server"', 'key "nobody"')


def with_another_secret(good: str) -> str:
    (secret,) = re.findall(r'secret "(.*)"', good)
    return good.replace(secret, base64.b64encode(b"x" * 32).decode())


@pytest.mark.parametrize("spoil", [of_another_name, with_another_secret])
def test_a_key_that_the_server_does_not_know(
    lab: Lab, names: NameServer, start: Start, spoil: Callable[[str], str]
) -> None:
    good = names.key_file("server").read_text()
    names.key_file("server").write_text(spoil(good))
    daemon = start()
    assert daemon.wait_event("dns.failed", timeout=PATIENCE)["reason"] == "key-refused"
    assert names.addresses("server") == set()
    names.key_file("server").write_text(good)
    names.key_file("server").chmod(0o644)
    lab.server.move(lab.dc2, 20)
    daemon.wait_event("dns.failed", timeout=PATIENCE, reason="key-file")
    assert names.addresses("server") == set()
    names.key_file("server").chmod(0o600)
    leads_to(names, *lab.server.links[0].addresses)
    assert good.split('secret "')[1][:20] not in daemon.report()
