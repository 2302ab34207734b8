"""An ssh session and a copy live through five moves, whatever stands between the hosts.

client ── (NAT) ── home, café, office ── router ── dc1, dc2 ── (NAT) ── server

Every cell is a network of its own kind; see `redirectctl.lab.middlebox` and `topology.Network`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from daemon_pair import PATIENCE, Pair
from test_host_firewall import close

from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import FIRST_HOST, Host, Lab, Network
from redirectctl.wire.addr import IPAddress

MOVES = 5
SIZE = 48 << 20
KBIT = 12_000  # so that a copy goes on for about 30 s
DEAD_AFTER = 6.0  # seconds in which a session without redirectctl does not answer
FORWARDED = {("udp", 7747): FIRST_HOST, ("tcp", 22): FIRST_HOST}


Move = Callable[[], tuple[Host, list[IPAddress]]]


class Cell(NamedTuple):
    """Two hosts with something between them."""

    target: IPAddress  # what ssh is told
    moves: list[Move]  # each returns who has lost which addresses


def change(host: Host, network: Network, number: int) -> Move:
    """The host leaves where it is, and joins another network."""

    def move() -> tuple[Host, list[IPAddress]]:
        gone = [address for old in host.leave() for address in old]
        host.join(network, number)
        return host, gone

    return move


def tour(host: Host, *networks: Network) -> list[Move]:
    """Moves through these networks in turn, no address twice."""
    return [
        change(host, network, number)
        for number, network in zip(range(FIRST_HOST + 1, FIRST_HOST + 1 + MOVES), itertools.cycle(networks))
    ]


def no_nat(lab: Lab) -> Cell:
    return Cell(lab.server.address(), tour(lab.client, lab.cafe, lab.office, lab.home))


def client_behind_nat(lab: Lab) -> Cell:
    private = [Gateway(lab, network).private for network in (lab.home, lab.cafe, lab.office)]
    lab.client.move(private[0], FIRST_HOST)
    return Cell(lab.server.address(), tour(lab.client, *private[1:], private[0]))


def both_behind_nat(lab: Lab) -> Cell:
    homes = [Gateway(lab, network) for network in (lab.home, lab.cafe, lab.office)]
    private = [gateway.private for gateway in homes]
    centres = [Gateway(lab, network) for network in (lab.dc1, lab.dc2)]
    for centre in centres:
        centre.forward(FORWARDED)
    lab.client.move(private[0], FIRST_HOST)
    lab.server.move(centres[0].private, FIRST_HOST)
    moves = tour(lab.client, *private[1:], private[0])
    visited = itertools.cycle([*homes[1:], homes[0]])
    moves = [forwarding(move, next(visited), number) for number, move in enumerate(moves, FIRST_HOST + 1)]
    moves[2] = change(lab.server, centres[1].private, FIRST_HOST)
    return Cell(centres[0].address(), moves)


def forwarding(move: Move, gateway: Gateway, number: int) -> Move:
    """The gateway forwards the control port to whoever comes: else a server at another address is a stranger to it."""

    def forward_and_move() -> tuple[Host, list[IPAddress]]:
        gateway.forward({("udp", 7747): number})
        return move()

    return forward_and_move


def nat_comes_and_goes(lab: Lab) -> Cell:
    private = Gateway(lab, lab.home).private
    lab.client.move(private, FIRST_HOST)
    return Cell(lab.server.address(), tour(lab.client, lab.cafe, private))


def stateful_firewall(lab: Lab) -> Cell:
    for network in (lab.home, lab.cafe, lab.office):
        network.firewall()
    return Cell(lab.server.address(), tour(lab.client, lab.cafe, lab.office, lab.home))


def host_firewalls(lab: Lab) -> Cell:
    close(lab.client)
    close(lab.server, "tcp dport 22 ct state new accept")
    return no_nat(lab)


def options_stripped(lab: Lab) -> Cell:
    for network in (lab.home, lab.cafe, lab.office):
        network.strip_options()
    return no_nat(lab)


def options_stripped_behind_nat(lab: Lab) -> Cell:
    for network in (lab.home, lab.cafe, lab.office):
        network.strip_options()
    return client_behind_nat(lab)


def other_family(lab: Lab) -> Cell:
    lab.home.only(4)
    lab.cafe.only(6)
    lab.client.move(lab.home, FIRST_HOST)
    return Cell(lab.server.address(4), tour(lab.client, lab.cafe, lab.home))


def small_mtu(lab: Lab) -> Cell:
    lab.cafe.shrink(1280)
    lab.office.shrink(1400)
    return Cell(lab.server.address(), tour(lab.client, lab.cafe, lab.office, lab.home))


def loss(lab: Lab) -> Cell:
    lab.cafe.lose(5)
    lab.office.lose(5)
    return Cell(lab.server.address(), tour(lab.client, lab.cafe, lab.office))


def nat_dials_again(lab: Lab) -> Cell:
    gateway = Gateway(lab, lab.home)
    lab.client.move(gateway.private, FIRST_HOST)

    def move() -> tuple[Host, list[IPAddress]]:
        old = gateway.links[0].addresses
        gateway.rebind()
        return gateway, list(old)

    return Cell(lab.server.address(), [move] * MOVES)


CELLS = pytest.mark.parametrize(
    "build",
    [
        no_nat,
        client_behind_nat,
        both_behind_nat,
        nat_comes_and_goes,
        stateful_firewall,
        host_firewalls,
        options_stripped,
        options_stripped_behind_nat,
        other_family,
        small_mtu,
        loss,
        nat_dials_again,
    ],
    ids=lambda build: build.__name__.replace("_", "-"),
)


def to(cell: Cell, command: list[str]) -> list[str]:
    """ssh or scp to the cell's target: what is given first counts."""
    return [command[0], "-o", f"HostName={cell.target}", *command[1:]]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assert_gone(host: Host, addresses: list[IPAddress]) -> None:
    assert addresses
    assert not [address for address in addresses if host.has_address(address)]


@CELLS
def test_a_session_and_a_copy_live_through_five_moves(lab: Lab, build: Callable[[Lab], Cell]) -> None:
    cell = build(lab)
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    source, target = lab.sandbox.directory / "source", sshd.home / "target"
    source.write_bytes(os.urandom(SIZE))
    terminal = Terminal(lab.client, [*pair.wrap, *to(cell, sshd.ssh())])
    copy, *rest = to(cell, sshd.scp(str(source), f"server:{target.name}"))

    def start() -> subprocess.Popen[str]:
        return lab.client.popen([*pair.wrap, copy, "-l", str(KBIT), *rest], stderr=subprocess.PIPE)

    def finish() -> None:
        _, complaints = scp.communicate(timeout=PATIENCE * 3)
        assert (scp.returncode, complaints) == (0, "")
        assert digest(target) == digest(source)

    def progress() -> bool:
        return target.stat().st_size > before or scp.poll() is not None

    scp = start()
    pair.wait_protected(2)
    for number, move in enumerate(cell.moves):
        if scp.poll() is not None:  # moves took long: there is to be a copy under way in each
            finish()
            scp = start()
            pair.wait_protected(2)
        host, gone = move()
        assert terminal.run(f"echo $(({number} + 1000))", PATIENCE) == f"{number + 1000}\n"
        before = target.stat().st_size
        wait_until(progress, PATIENCE, "the copy goes on", poll=0.05)
        assert_gone(host, gone)
    finish()
    assert terminal.leave() == 0
    pair.stop_without_a_trace()


@CELLS
def test_without_redirectctl_the_first_move_ends_a_session(lab: Lab, build: Callable[[Lab], Cell]) -> None:
    cell = build(lab)
    terminal = Terminal(lab.client, to(cell, SshServer(lab.server).ssh()))
    host, gone = cell.moves[0]()
    with pytest.raises(LabError, match="the terminal"):
        terminal.run("true", DEAD_AFTER)
    assert_gone(host, gone)
