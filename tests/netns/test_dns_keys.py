"""A key that DNS has for the name of a command, in a signed zone, takes the place of a person; forged ones do not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from daemon_pair import FAST, PATIENCE
from name_server import ZONE, ForgingResolver, NameServer, needs_named

from redirectctl.lab.daemons import CommandError, Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import Program, wait_until
from redirectctl.lab.topology import Host, Lab

pytestmark = needs_named

NAME = f"server.{ZONE}"
CONNECT = """
import socket, sys, time
opened = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
print(opened.getpeername()[0], flush=True)
time.sleep(600)
"""
ASK = FAST.replace("accept-new", "ask")


def configured(anchors: object) -> str:
    return ASK.replace("[trust]", f'[trust]\ndns = true\nanchors = "{anchors}"')


def started(host: Host, config: str, command: list[str] | None = None) -> Daemon:
    daemon = Daemon(host, config, command=command) if command is not None else Daemon(host, config)
    daemon.start()
    return daemon


def published(daemon: Daemon, host: Host) -> list[str]:
    """What a zone has for a host, with the line that `identity --dns` prints."""
    return [f"{NAME}. IN A {host.address(4)}", daemon.ctl("identity", "--dns", NAME)["record"]]


def examined(daemon: Daemon, name: str) -> dict[str, dict[str, Any]]:
    """What doctor says of a host."""
    argv = [program("redirectctl"), "--socket", str(daemon.socket), "--json", "doctor", name]
    return {check["name"]: check for check in json.loads(daemon.host.run(argv, check=False).stdout)}


def connect(names: NameServer | ForgingResolver, client: Daemon, server: Host) -> subprocess.Popen[str]:
    """A command that knows the server by its name."""
    port = Program(server, "echo", "--listen", "0").wait_line(1)["port"]
    argv = names.resolving([*client.opted_in(), sys.executable, "-c", CONNECT, NAME, str(port)])
    connecting = client.host.popen(argv, stdout=subprocess.PIPE)
    assert connecting.stdout is not None
    assert connecting.stdout.readline() == f"{server.address(4)}\n"
    return connecting


def test_a_first_contact_that_no_person_is_asked_about(lab: Lab) -> None:
    server = started(lab.server, FAST)
    names = NameServer(lab, lab.office, names=(), lines=published(server, lab.server))
    client = started(lab.client, configured(names.anchors), names.resolving([program("redirectd")]))
    connect(names, client, lab.server)
    client.wait_event("peer.approved", reason="dns-key", timeout=PATIENCE)
    client.wait_connections("protected", timeout=PATIENCE)
    (peer,) = client.ctl("peers")
    assert peer["fingerprint"] == server.ctl("identity")["fingerprint"]


def test_a_host_that_a_person_names_to_doctor(lab: Lab) -> None:
    server = started(lab.server, FAST)
    names = NameServer(lab, lab.office, names=(), lines=published(server, lab.server))
    client = started(lab.client, configured(names.anchors), names.resolving([program("redirectd")]))
    line = server.host.run([program("redirectctl"), "--socket", str(server.socket), "identity", "--dns", "server"])
    assert line.stdout == f'_redirectctl.server IN TXT "v=1 {server.ctl("identity")["fingerprint"]}"\n'
    with pytest.raises(CommandError, match="is not a name"):
        server.ctl("identity", "--dns", "no name")
    checks = examined(client, NAME)
    assert checks["peer.published-key"]["status"] == "ok", checks
    assert checks["peer.trust"]["status"] == "ok", checks
    client.wait_event("peer.approved", reason="dns-key", timeout=PATIENCE)


def test_nobody_is_asked_unless_the_configuration_says_so(lab: Lab) -> None:
    server = started(lab.server, FAST)
    names = NameServer(lab, lab.office, names=(), lines=published(server, lab.server))
    client = started(lab.client, ASK, names.resolving([program("redirectd")]))
    assert "peer.published-key" not in examined(client, NAME)
    connect(names, client, lab.server)
    client.wait_connections("pending", timeout=PATIENCE)
    client.config.write_text(configured(names.anchors))
    client.reload()
    client.wait_event("peer.approved", reason="dns-key", timeout=PATIENCE)
    client.wait_connections("protected", timeout=PATIENCE)


@pytest.mark.parametrize(("zone", "why"), [("signed by itself", "vouched for"), ("said to be valid", "not signed")])
def test_a_resolver_that_forges_the_record(lab: Lab, zone: str, why: str) -> None:
    """The name leads to another host, and the record has that host's key: a person is asked."""
    lab.stranger.join(lab.cafe, 66)
    mallory = started(lab.stranger, FAST)
    lines = published(mallory, lab.stranger)
    right = NameServer(lab, lab.office, names=(), lines=[])
    anchors = lab.sandbox.directory / "anchors"
    anchors.write_text(right.anchors.read_text())
    anchors.chmod(0o644)
    forging: NameServer | ForgingResolver = right
    if zone == "signed by itself":
        right.sign_anew(lines)
        assert right.anchors.read_text() != anchors.read_text()
    else:
        forging = ForgingResolver(lab, lab.office, lines)
    client = started(lab.client, configured(anchors), forging.resolving([program("redirectd")]))
    connecting = connect(forging, client, lab.stranger)
    said = wait_until(lambda: [x for x in client.report().splitlines() if f"{NAME} in DNS for" in x], PATIENCE, "asked")
    assert why in said[0]
    assert [peer["state"] for peer in client.ctl("peers")] == ["pending"]
    (connection,) = client.ctl("connections")
    assert (connection["state"], connection["reason"]) == ("pending", "approval-pending-here")
    check = examined(client, NAME)["peer.published-key"]
    assert check["status"] == ("fail" if zone == "signed by itself" else "skip"), check
    assert why in check["found"]
    assert not client.events("peer.approved")
    assert connecting.poll() is None
