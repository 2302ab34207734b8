"""redirectctl doctor HOST where the host is no peer: it says who keeps the port closed, and what to do next.

::

    client (home) ── router ── server (dc1)        redirectd on the client; topology.py has the picture
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_ticker
from redirectctl.lab.topology import Lab
from tests.netns.daemon_pair import FAST, PATIENCE
from tests.netns.test_doctor import doctor, drop, not_ok

ASK = '[protect]\nlong_lived_after = "1s"\n'
CONTACT = "peer.control-port"


@pytest.fixture
def client(lab: Lab) -> Daemon:
    daemon = Daemon(lab.client, ASK)
    daemon.start()
    return daemon


def commands(check: dict[str, Any]) -> list[str]:
    """What a hint says has to be typed."""
    return [each for each in re.findall(r"`([^`]+)`", check["hint"]) if each.startswith("redirectctl ")]


def typed(daemon: Daemon, command: str) -> None:
    daemon.ctl(*shlex.split(command)[1:])


def test_who_keeps_the_port_closed(lab: Lab, client: Daemon) -> None:
    """No daemon there; a firewall there or between that says so; one that says nothing; no way; no such name."""
    server = str(lab.server.address())
    router = re.search(r"via (\S+)", lab.client.run(["ip", "route", "get", server]).stdout)
    assert router is not None

    code, checks = doctor(client, server)
    assert (code, set(not_ok(checks))) == (1, {CONTACT})
    assert f"{server} says port unreachable" in checks[CONTACT]["found"]
    assert "redirectd does not run there: on that host, `sudo systemctl start redirectd`" in checks[CONTACT]["hint"]

    drop(lab.server, "udp dport 7747 reject with icmp type admin-prohibited")
    _, checks = doctor(client, server)
    assert f"{server} says administratively prohibited" in checks[CONTACT]["found"]
    assert "a firewall of that host itself rejects the datagrams" in checks[CONTACT]["hint"]
    lab.server.run(["nft", "delete", "table", "inet", "guard"])

    drop(lab.router, "udp dport 7747 reject with icmp type admin-prohibited", "forward")
    _, checks = doctor(client, server)
    assert f"{router[1]} says administratively prohibited" in checks[CONTACT]["found"]
    assert f"a firewall at {router[1]} rejects the datagrams" in checks[CONTACT]["hint"]
    lab.router.run(["nft", "delete", "table", "inet", "guard"])

    drop(lab.router, "udp dport 7747 drop", "forward")
    _, checks = doctor(client, server)
    assert "without an ICMP error: something drops" in checks[CONTACT]["found"]
    assert "between the hosts" in checks[CONTACT]["hint"]
    lab.router.run(["nft", "delete", "table", "inet", "guard"])

    drop(lab.client, "udp dport 7747 drop", "output")
    code, checks = doctor(client, server)
    assert set(not_ok(checks)) == {CONTACT, "control.firewall"}
    assert "here, datagrams out are dropped by" in checks[CONTACT]["found"]
    lab.client.run(["nft", "delete", "table", "inet", "guard"])

    lab.client.leave()
    code, checks = doctor(client, server)
    assert (code, checks["peer.route"]["status"]) == (1, "fail")
    assert "no route" in checks[CONTACT]["found"]


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("no-such-host.invalid", "no-such-host.invalid: "),
        ("not a name", "neither an address nor a name"),
        ("localhost", "this host itself"),
        ("OWN", "this host itself"),
    ],
)
def test_what_is_no_other_host(lab: Lab, client: Daemon, host: str, found: str) -> None:
    code, checks = doctor(client, str(lab.client.address()) if host == "OWN" else host)
    assert (code, list(checks)) == (1, ["peer.name"])
    assert found in checks["peer.name"]["found"]


def test_keys_that_are_not_known_until_both_have_approved(lab: Lab, client: Daemon) -> None:
    """Only what doctor says has to be typed is typed; a connection that waits is protected in the end."""
    server = Daemon(lab.server, ASK)
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("unsupported", timeout=PATIENCE)
    server.start()
    code, checks = doctor(client, str(lab.server.address()))
    assert code == 0
    assert "waits for approval here, we wait for approval there" in checks["peer.trust"]["found"]
    there, here, other = commands(checks["peer.trust"])
    assert there == "redirectctl identity"
    assert server.ctl("identity")["fingerprint"] in here
    typed(client, here)
    _, checks = doctor(client, str(lab.server.address()))
    assert "approved here, we wait for approval there" in checks["peer.trust"]["found"]
    assert commands(checks["peer.trust"]) == [other]
    typed(server, other)
    client.wait_connections("protected", timeout=PATIENCE)
    assert not_ok(doctor(client, str(lab.server.address()))[1]) == {}
    assert ticker.stop().ok


def test_a_changed_key(lab: Lab) -> None:
    """The server is installed anew.  By address, which names two keys now, doctor says which command is next."""
    client, server = Daemon(lab.client, FAST), Daemon(lab.server, FAST)
    client.start()
    server.start()
    first = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("protected", timeout=PATIENCE)
    old = server.ctl("identity")["fingerprint"]
    assert first.stop().ok
    server.stop()
    for each in server.state.iterdir():
        each.unlink()
    server.start()
    new = server.ctl("identity")["fingerprint"]
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_event("connection.refused", reason="key-changed", timeout=PATIENCE)
    for named in (str(lab.server.address()), old, new):
        code, checks = doctor(client, named)
        assert (code, checks["peer.trust"]["status"]) == (1, "fail")
        assert f"{old} is known for that host, but {new} has answered there" in checks["peer.trust"]["found"]
        compare, forget, again = commands(checks["peer.trust"])
        assert compare == "redirectctl identity"
        assert again == "redirectctl doctor HOST"
    typed(client, forget)
    code, checks = doctor(client, str(lab.server.address()))
    assert checks["peer.trust"]["found"].startswith(new)
    assert ticker.alive()
