"""Sessions: both patterns, lost and repeated messages, simultaneous starts, rekeying, restarts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.proto import constants, events
from redirectctl.proto.peer import PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.datagram import Pattern, Type
from tests.sim.endpoints import DONE, HELLO, lose, met, pair, patterns, talk


def test_first_contact() -> None:
    net, alice, bob = met()
    assert patterns(bob) == [Pattern.XX]
    assert alice.of(events.PeerMet) == [events.PeerMet(bob.static.public, bob.at(), initiator=False)]
    assert bob.of(events.PeerMet) == [events.PeerMet(alice.static.public, alice.at(), initiator=True)]
    heard, called = alice.of(events.SessionUp), bob.of(events.SessionUp)
    assert heard == [events.SessionUp(bob.static.public, bob.at(), True, initiator=False, local=alice.address)]
    assert called == [events.SessionUp(alice.static.public, alice.at(), True, initiator=True, local=bob.address)]
    assert alice.peer(bob).secret == bob.peer(alice).secret
    talk(net, alice, bob)


def test_known_peers_take_one_round_trip() -> None:
    net, alice, bob = met()
    secret = bob.peer(alice).secret
    bob.restart()
    before = len(patterns(bob))
    bob.contact(alice, known=True)
    net.run(1)
    assert patterns(bob)[before:] == [Pattern.IKPSK2]
    assert bob.peer(alice).secret == secret
    talk(net, alice, bob)
    assert not alice.refused()
    assert not bob.refused()


def test_no_first_message_is_shorter_than_its_answer() -> None:
    net, alice, bob = met()
    bob.contact(alice, known=True)
    net.run(1)
    (xx, ik), (xx_answer, ik_answer) = bob.sent(Type.INIT), alice.sent(Type.RESPONSE)
    assert len(xx) >= len(xx_answer)
    assert len(ik) >= len(ik_answer)


def test_a_first_message_without_its_padding_gets_no_answer() -> None:
    net, alice, bob = pair()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "XX_PADDING", constants.XX_PADDING - 1)
        bob.contact(alice)
    net.run(0.3)
    assert alice.refused() == ["too-short"]
    assert not alice.sent(Type.RESPONSE)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", [Type.INIT, Type.RESPONSE, Type.FINAL, Type.TRANSPORT])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_lost_handshake_messages(known: bool, kind: Type, times: int) -> None:
    net, alice, bob = met() if known else pair()
    if known:
        alice.restart()
        bob.restart()
    net.filter = lose(kind, times=times)
    bob.contact(alice, known=known)
    net.run(20)
    talk(net, alice, bob)
    assert not bob.failed()


def test_a_final_message_lost_for_long_is_sent_with_what_follows() -> None:
    """The initiator has the session already; without the last message of XX the responder reads nothing of it."""
    net, alice, bob = pair()
    net.filter = lose(Type.FINAL, times=len(constants.CONFIRM_RETRIES) + 1)
    bob.contact(alice)
    net.run(8)
    assert bob.say(alice, DONE)
    net.run(0.1)
    assert alice.heard() == [DONE]
    talk(net, alice, bob)


def test_a_final_message_goes_with_what_follows_as_soon_as_it_has_been_repeated() -> None:
    """Not before: it may just have been sent, and be under way."""
    net, alice, bob = pair()
    net.filter = lose(Type.FINAL, times=2)
    bob.contact(alice)
    net.run(0.1)
    assert bob.say(alice, HELLO)
    net.run(0.1)
    assert len(bob.sent(Type.FINAL)) == 1
    net.run(0.1)
    assert len(bob.sent(Type.FINAL)) == 2
    assert bob.say(alice, DONE)
    net.run(0.02)
    assert len(bob.sent(Type.FINAL)) == 3
    assert alice.heard() == [DONE]


def test_nothing_is_sent_where_it_is_not_known_where_the_peer_is() -> None:
    _, alice, bob = met()
    sent = len(bob.of(events.Transmit))
    bob.peer(alice).remote = None
    assert not bob.say(alice, HELLO)
    assert len(bob.of(events.Transmit)) == sent
    assert bob.endpoint.send(bob.net.now, bob.peer(alice), HELLO, alice.at(), bob.address)


def test_only_so_many_places_of_a_peer_are_remembered_as_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those where it was last."""
    monkeypatch.setattr(constants, "PROVEN_MAX", 3)
    _, alice, bob = met()
    peer = bob.peer(alice)
    places = [SockAddr(alice.address, 1000 + n) for n in range(5)]
    for place in places:
        bob.endpoint.locate(peer, place, bob.address)
    assert [p for p in (alice.at(), *places) if peer.receives_at(p)] == places[2:]
    bob.endpoint.locate(peer, places[2], bob.address)  # it is back there
    bob.endpoint.locate(peer, alice.at(), bob.address)
    assert [p for p in (alice.at(), *places) if peer.receives_at(p)] == [alice.at(), places[2], places[4]]


@pytest.mark.parametrize("known", [False, True])
def test_everything_twice(known: bool) -> None:
    net, alice, bob = met() if known else pair()
    net.filter = lambda source, to, data: [(0.01, data), (0.013, data)]
    bob.contact(alice, known=known)
    net.run(5)
    before = len(alice.heard())
    bob.say(alice, DONE)
    net.run(1)
    assert alice.heard()[before:] == [DONE], "once"
    assert set(alice.refused()) <= {"replayed", "replayed-handshake", "no-such-handshake"}
    net.filter = lambda source, to, data: [(0.01, data)]
    talk(net, alice, bob)


@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.2, 0.4]), jitter=st.sampled_from([0.01, 0.5, 2.0]),
       known=st.booleans(), both=st.booleans())  # fmt: skip
def test_any_network_that_gets_better(seed: int, loss: float, jitter: float, known: bool, both: bool) -> None:
    net, alice, bob = met(seed) if known else pair(seed)
    net.filter = lambda source, to, data: [
        (net.random.random() * jitter, data) for _ in range(net.random.choice((1, 2))) if net.random.random() >= loss
    ]
    bob.contact(alice, known=known)
    if both:
        alice.contact(bob, known=known)
    net.run(15)
    net.filter = lambda source, to, data: [(0.01, data)]
    bob.contact(alice, known=alice.static.public in bob.endpoint.peers)
    net.run(15)
    talk(net, alice, bob)


@pytest.mark.parametrize("gap", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03])
def test_first_contact_from_both_at_once(gap: float) -> None:
    """Both ends keep the same secret, and know each other by it afterwards."""
    for seed in range(8):
        net, alice, bob = pair(seed)
        bob.contact(alice)
        net.run(gap)
        alice.contact(bob)
        net.run(3)
        assert alice.peer(bob).secret == bob.peer(alice).secret
        talk(net, alice, bob)
        for end, other in ((alice, bob), (bob, alice)):
            end.restart()
            before = len(patterns(end))
            end.contact(other, known=True)
            net.run(1)
            assert patterns(end)[before:] == [Pattern.IKPSK2]
            talk(net, alice, bob)
        assert not alice.failed()
        assert not bob.failed()


@pytest.mark.parametrize("gap", [0.0, 0.005, 0.01, 0.02])
def test_known_peers_both_start_at_once(gap: float) -> None:
    net, alice, bob = met()
    alice.contact(bob, known=True)
    net.run(gap)
    bob.contact(alice, known=True)
    net.run(2)
    talk(net, alice, bob)
    assert not alice.refused()
    assert not bob.refused()


def test_the_answer_of_a_peer_counts_as_contact_before_it_has_said_anything() -> None:
    net, alice, bob = met()
    bob.restart()
    bob.peer(alice).last_contact = None
    asked = net.now
    net.filter = lose(Type.TRANSPORT, times=100)
    bob.contact(alice, known=True)
    net.run(1)
    contact = bob.peer(alice).last_contact
    assert contact is not None
    assert asked < contact < net.now


@pytest.mark.parametrize("known", [False, True])
def test_a_second_start_on_the_same_path_changes_nothing(known: bool) -> None:
    net, alice, bob = met() if known else pair()
    inits, sessions = len(bob.sent(Type.INIT)), len(bob.of(events.SessionUp))
    net.filter = lambda source, to, data: [(0.1, data)]
    bob.contact(alice, known=known)
    net.run(0.08)
    bob.contact(alice, known=known)
    assert len(bob.sent(Type.INIT)) == inits + 1
    net.run(1)
    assert len(bob.of(events.SessionUp)) == sessions + 1


# -- rekeying and expiry -----------------------------------------------------------------------------------------------


def test_rekeying_in_time_when_the_peer_is_to_be_kept() -> None:
    """Nobody has anything to send; there is a usable session at every moment all the same."""
    net, alice, bob = met()
    alice.peer(bob).keep = bob.peer(alice).keep = True
    for _ in range(120):
        net.run(10)
        assert alice.peer(bob).session(net.now) is not None
        assert bob.peer(alice).session(net.now) is not None
    assert 9 <= len(patterns(alice) + patterns(bob)) - 1 <= 12, "one handshake every two minutes, by one of the two"
    talk(net, alice, bob)


def test_without_anything_to_keep_sessions_end() -> None:
    net, alice, bob = met()
    net.run(constants.REJECT_AFTER_TIME)
    assert not alice.peer(bob).sessions
    assert not bob.peer(alice).sessions
    assert not bob.say(alice, HELLO)
    assert bob.endpoint.next_timer() is None, "nothing is left to wait for"
    assert len(patterns(bob)) == 1


def test_sending_in_an_old_session_starts_a_new_one() -> None:
    net, alice, bob = met()
    net.run(constants.REKEY_AFTER_TIME + 1)
    assert bob.say(alice, HELLO)
    net.run(1)
    assert patterns(bob) == [Pattern.XX, Pattern.IKPSK2]
    assert bob.peer(alice).sessions[0].created > net.now - 2


def test_the_rekeying_goes_to_where_the_peer_is_and_not_to_where_a_message_is_tried() -> None:
    net, alice, bob = met()
    net.run(constants.REKEY_AFTER_TIME + 1)
    nowhere = SockAddr(net.end("victim", "203.0.113.99").address, 7747)
    bob.endpoint.send(net.now, bob.peer(alice), HELLO, nowhere, bob.address)
    bob.flush()
    inits = [(e.source, e.to) for e in bob.of(events.Transmit) if e.data[0] == Type.INIT]
    assert inits == [(bob.address, alice.at())] * 2


def test_rekeying_by_count() -> None:
    net, alice, bob = met()
    bob.peer(alice).sessions[0].counter = constants.REKEY_AFTER_MESSAGES
    assert bob.say(alice, HELLO)
    net.run(1)
    assert len(bob.peer(alice).sessions) == 2
    assert alice.heard() == [HELLO]


def test_no_message_above_the_limit() -> None:
    _, alice, bob = met()
    bob.peer(alice).sessions[0].counter = constants.REJECT_AFTER_MESSAGES
    assert not bob.say(alice, HELLO)


def test_messages_of_an_expired_session_are_refused() -> None:
    net, alice, bob = met()
    bob.peer(alice).sessions[0].created += 100  # its clock is slow
    net.run(constants.REJECT_AFTER_TIME - 1.5)
    session = alice.peer(bob).sessions[0]
    assert bob.say(alice, HELLO)
    net.now += 1.0
    before = alice.heard()
    alice.endpoint.receive(net.now, bob.sent(Type.TRANSPORT)[-1], bob.at(), alice.address)
    alice.flush()
    assert alice.refused() == ["expired-session"]
    assert alice.heard() == before
    assert session.expired(net.now)


def test_a_rekeying_while_messages_are_under_way_loses_none() -> None:
    net, alice, bob = met()
    numbers = itertools.count()
    for _ in range(100):
        bob.say(alice, messages.Done(next(numbers)))
        if next(numbers) % 20 == 1:
            bob.contact(alice, known=True)
            alice.contact(bob, known=True)
        net.run(0.004)
    net.run(1)
    assert len(alice.heard()) == 100


def test_only_some_sessions_are_kept() -> None:
    net, alice, bob = met()
    for _ in range(10):
        bob.contact(alice, known=True)
        net.run(1)
    for end, other in ((alice, bob), (bob, alice)):
        assert len(end.peer(other).sessions) == constants.SESSIONS_PER_PEER
        assert len(end.endpoint.sessions) == constants.SESSIONS_PER_PEER
        assert len(end.endpoint._by_remote) == constants.SESSIONS_PER_PEER
    talk(net, alice, bob)


# -- restarts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost_by", ["alice", "bob"])
@pytest.mark.parametrize("speaks", ["alice", "bob"])
def test_lost_sessions_recover_quickly(lost_by: str, speaks: str) -> None:
    """One side has restarted.  Whoever speaks first, a round trip or two later all is well."""
    net, alice, bob = met()
    (alice if lost_by == "alice" else bob).restart()
    one, other = (alice, bob) if speaks == "alice" else (bob, alice)
    if not one.say(other, HELLO):
        one.contact(other, known=True)
    net.run(0.1)
    talk(net, alice, bob)
    assert (patterns(alice) + patterns(bob)).count(Pattern.XX) == 1


def test_who_has_forgotten_us_is_met_again() -> None:
    """alice's store is gone, not her key: UNKNOWN leads to XX at once, in which she proves the key that bob knows."""
    net, alice, bob = met()
    alice.start({})
    bob.restart()
    bob.contact(alice, known=True)
    net.run(0.2)
    assert patterns(bob)[1:] == [Pattern.IKPSK2, Pattern.XX]
    assert alice.of(events.PeerMet)[1:], "for her it is a first contact"
    talk(net, alice, bob)
    assert not bob.failed()


@pytest.mark.parametrize("whose", ["alice", "bob"])
def test_a_pairwise_secret_that_differs_recovers_by_first_contact(whose: str) -> None:
    """A backup was restored, or one was killed in the middle of an XX.  The known key must still be proven."""
    net, alice, bob = met()
    net.run(200)
    (alice.peer(bob) if whose == "alice" else bob.peer(alice)).secret = bytes(32)
    bob.contact(alice, known=True)
    net.run(0.2)
    assert patterns(bob)[1:] == [Pattern.IKPSK2, Pattern.XX], "at once"
    assert bob.refused() == ["forged-response"]
    assert alice.peer(bob).secret == bob.peer(alice).secret
    assert alice.peer(bob).state is PeerState.APPROVED
    talk(net, alice, bob)
    assert not bob.failed()


def test_a_counter_that_went_back_recovers_by_first_contact() -> None:
    """bob's store is of yesterday: his handshakes look like replays."""
    net, alice, bob = met()
    bob.generation = 10
    bob.restart()
    bob.contact(alice, known=True)
    net.run(200)
    bob.generation = 1
    bob.restart()
    bob.contact(alice, known=True)
    net.run(10)
    assert "replayed-handshake" in alice.refused()
    talk(net, alice, bob)
    bob.restart()
    before = len(patterns(bob))
    bob.contact(alice, known=True)
    net.run(1)
    assert patterns(bob)[before:] == [Pattern.IKPSK2]
    talk(net, alice, bob)


def test_a_forgotten_peer_while_a_handshake_with_it_is_under_way() -> None:
    net, alice, bob = met()
    bob.restart()
    net.filter = lambda source, to, data: []
    bob.contact(alice, known=True)
    bob.endpoint.forget(alice.static.public)
    bob.flush()
    net.run(30)
    assert bob.failed() == ["peer-forgotten"]
    assert not bob.endpoint.peers
    net.filter = lambda source, to, data: [(0.01, data)]
    bob.contact(alice)
    net.run(1)
    talk(net, alice, bob)


def test_to_forget_a_key_that_is_not_known_changes_nothing() -> None:
    net, alice, bob = met()
    bob.endpoint.forget(b"nobody" + bytes(26))
    assert bob.endpoint.drain() == []
    assert set(bob.endpoint.peers) == {alice.static.public}
    talk(net, alice, bob)


def test_nobody_there() -> None:
    net, alice, bob = pair()
    net.ends.remove(alice)
    bob.contact(alice)
    net.run(30)
    assert bob.failed() == ["no-answer"]
    assert len(bob.sent(Type.INIT)) == len(constants.HANDSHAKE_RETRIES)
    assert bob.endpoint.next_timer() is None
