"""Where a peer is changes only when it has shown that it receives there.

alice has approved mallory, and has a connection with it.  Mallory's daemon is an honest one whose datagrams mallory
sends with whatever source it likes: no traffic of alice may go to an address that has answered nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import PathChallenge, PathResponse
from tests.sim.network import PORT, ip
from tests.sim.world import World

ALICE, MALLORY, VICTIM, RITA = "192.0.2.1", "203.0.113.66", "203.0.113.99", "203.0.113.77"
NEW = "198.51.100.7"
AUTO = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


class Scene:
    """alice and mallory, with a protected connection that mallory has opened."""

    def __init__(self, *mallorys: str, policy: Policy = AUTO, met: bool = False) -> None:
        """``met``: at a rendezvous, too."""
        self.world = World(seed=5)
        self.alice = self.world.host("alice", ALICE, policy=policy)
        self.mallory = self.world.host("mallory", *(mallorys or (MALLORY,)), policy=policy)
        self.others = [self.world.host("rita", RITA, policy=replace(policy, serve=True))] if met else []
        for host in (self.alice, self.mallory) if met else ():
            host.meets_at(*self.others)
        self.socket, self.mirrored = self.world.connect(self.mallory, self.alice, 50000)
        self.world.run(30 if met else 5)
        self.reached: Counter[IPAddress] = Counter()  # bytes that others were sent, by address
        self.forging = False
        self.world.tap = self.tap

    def tap(self, source: SockAddr, to: SockAddr, data: bytes) -> bool:
        """What mallory sends seems to come from the victim, while it forges; it receives where it is."""
        if to.host not in (*self.alice.addresses, ip(MALLORY)):
            self.reached[to.host] += len(data)
        if self.forging and source.host in self.mallory.addresses:
            self.forging = False  # what we pass on now is not forged again
            self.world.transmit(SockAddr(ip(VICTIM), PORT), to, data)
            self.forging = True
            return False
        return True

    def places(self) -> set[IPAddress]:
        """Where alice sends what is for mallory."""
        peer = self.alice.engine.peers[self.mallory.static.public]
        c = self.alice.connection(self.mirrored)
        found = {c.remote_now, c.wire.remote.host}
        found |= {c.outer_remote.host} if c.outer_remote is not None else set()
        found |= {peer.remote.host} if peer.remote is not None else set()
        found |= {one.remote.host for one in self.alice.carried.values() if one.remote is not None}
        return found


def say_that_it_is_there(scene: Scene) -> None:
    """mallory's HELLO lists the victim's address: it is one of those at which alice looks for it."""
    scene.mallory.addresses = [ip(MALLORY), ip(VICTIM)]
    scene.mallory.network_changed()
    peer = scene.mallory.engine.peers[scene.alice.static.public]
    scene.mallory.engine.agreement.hello(scene.world.now, peer)
    scene.mallory.run()
    scene.world.run(1)
    scene.mallory.addresses = [ip(MALLORY)]


@pytest.fixture(params=["plain", "integrity", "rendezvous"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """As it is; where each packet is authenticated; with a rendezvous that knows both."""
    return Scene(policy=replace(AUTO, integrity=request.param == "integrity"), met=request.param == "rendezvous")


def test_an_answer_with_a_nonce_that_went_nowhere_is_refused() -> None:
    """mallory has guessed it: that the datagram with it has arrived anywhere is not shown."""
    scene = Scene()
    scene.world.link.cut = True
    scene.alice.move(NEW)
    (epoch,) = (move.epoch for move in scene.alice.engine.announcements.moves())
    scene.world.link.cut = False
    answer = PathChallenge(epoch, b"guessed.", b"of mine.")
    scene.mallory.engine.host.send(scene.world.now, scene.alice.static.public, answer, SockAddr(ip(NEW), PORT))
    scene.mallory.run()
    scene.world.run(0.05)
    assert scene.alice.named("packet.refused", "unknown-nonce")
    assert not [m for m, _, _ in scene.alice.messages if isinstance(m, PathResponse)]


@pytest.mark.parametrize("listed", [True, False])
def test_a_forged_source_of_challenge_and_acknowledgement(scene: Scene, listed: bool) -> None:
    if listed:
        say_that_it_is_there(scene)
    scene.forging = True
    scene.alice.move(NEW)
    scene.world.run(30)
    assert scene.alice.connection(scene.mirrored).local_now == ip(NEW)
    assert ip(VICTIM) not in scene.places()
    assert ip(MALLORY) in scene.places()


def test_a_forged_source_of_the_acknowledgement_alone(scene: Scene) -> None:
    say_that_it_is_there(scene)
    scene.alice.move(NEW)
    scene.world.run(0.025)  # the challenge has come, and was answered
    scene.forging = True
    scene.world.run(30)
    assert ip(VICTIM) not in scene.places()


def test_a_forged_source_of_the_response(scene: Scene) -> None:
    """mallory moves; alice's challenge reaches it, and its answer seems to come from the victim, announced as well."""
    scene.mallory.addresses = [ip(NEW), ip(VICTIM)]
    scene.mallory.network_changed()
    scene.world.run(0.015)
    scene.forging = True
    scene.world.run(30)
    assert ip(VICTIM) not in scene.places()


def test_a_forged_source_of_the_first_message_of_a_session(scene: Scene) -> None:
    scene.alice.crash()
    scene.alice.start()
    scene.world.run(0)
    scene.mallory.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT), None, scene.alice.static.public)
    scene.mallory.run()
    scene.world.run(0.015)
    scene.forging = True
    scene.world.run(30)
    assert ip(VICTIM) not in scene.places()


def test_whoever_was_on_the_path_for_a_moment_does_not_keep_the_traffic() -> None:
    """M passes on, from its own address, what mallory sends while it moves; then it goes.  Here mallory is honest."""
    scene = Scene()
    man = ip("203.0.113.200")
    world, inside = scene.world, [True]

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if not inside[0]:
            return True
        inside[0] = False
        if source.host == ip(NEW):
            world.transmit(SockAddr(man, 9), to, data)
        elif to.host == man:
            world.transmit(source, SockAddr(ip(NEW), PORT), data)
        else:
            inside[0] = True
            return True
        inside[0] = True
        return False

    world.tap = tap
    scene.mallory.move(NEW)
    world.run(3)
    assert man in scene.places()
    world.tap = None  # it has gone: what is for it gets lost, what mallory sends arrives from where it is
    world.run(60)
    assert scene.places() == {ip(NEW), ip(MALLORY)} or scene.places() == {ip(NEW)}


@pytest.mark.parametrize("seconds", [300])
def test_addresses_that_were_never_proven_share_a_small_budget(seconds: int) -> None:
    """mallory lists victims, and does not answer any more; alice announces itself for as long as that is so."""
    scene = Scene()
    victims = [f"203.0.113.{n}" for n in range(100, 107)]
    scene.mallory.addresses = [ip(MALLORY), *map(ip, victims)]
    scene.mallory.network_changed()
    peer = scene.mallory.engine.peers[scene.alice.static.public]
    scene.mallory.engine.agreement.hello(scene.world.now, peer)
    scene.mallory.run()
    scene.world.run(1)
    scene.mallory.crash()
    scene.alice.move(NEW)
    for _ in range(seconds):
        scene.alice.engine.stalled(scene.world.now, [scene.mirrored])
        scene.alice.run()
        scene.world.run(1)
    assert scene.alice.connection(scene.mirrored).state is State.SUSPENDED
    total = sum(scene.reached[ip(v)] for v in victims)
    assert 0 < total < 40_000


def test_the_honest_peer_gets_in_while_another_uses_its_budget_up() -> None:
    scene = Scene()
    bob = scene.world.host("bob", "198.51.100.50", policy=AUTO)
    socket, mirrored = scene.world.connect(bob, scene.alice, 40000)
    scene.world.run(5)
    test = [f"203.0.113.{n}" for n in range(100, 107)]
    scene.mallory.addresses = [ip(MALLORY), *map(ip, test)]
    scene.mallory.network_changed()
    scene.mallory.engine.agreement.hello(scene.world.now, scene.mallory.engine.peers[scene.alice.static.public])
    scene.mallory.run()
    scene.world.run(1)
    scene.mallory.crash()
    scene.alice.engine.announce(scene.world.now)
    scene.alice.run()
    scene.world.run(200)
    bob.move("198.51.100.51")
    scene.world.run(1)
    assert scene.alice.connection(mirrored).remote_now == ip("198.51.100.51")
    assert bob.connection(socket).local_now == ip("198.51.100.51")
