"""Whose key an address means, where strangers may have called from it in another host's place."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.api.schema import RequestError
from redirectctl.daemon import watching
from redirectctl.daemon.apiserver import Caller
from redirectctl.daemon.service import DaemonService
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.kernel.processes import procfs
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.store.records import PeerAddress, PeerRecord, PeerState
from redirectctl.wire.addr import FourTuple, SockAddr

SERVER, STRANGER, OTHER = b"s" * 32, b"m" * 32, b"o" * 32
ADDRESS = "198.51.100.2"
OWN_OF_ROOT = -2
OWN = FourTuple(SockAddr(ip_address("192.0.2.1"), 40000), SockAddr(ip_address(ADDRESS), 22))


def peer(key: bytes, *addresses: tuple[str, bool], state: PeerState = PeerState.PENDING, **more: Any) -> PeerRecord:
    """addresses: and whether we called it there."""
    listed = tuple(PeerAddress(ip_address(text), 1.0, 2.0 + n, called) for n, (text, called) in enumerate(addresses))
    return PeerRecord(key, fingerprint(key), state, 1.0, addresses=listed, **more)


def service(*peers: PeerRecord, words: dict[tuple[str, int], list[bytes]] | None = None) -> DaemonService:
    """words: with a user, and the peers that he means by it; root's own are those of user OWN_OF_ROOT."""

    def meaning(word: str, uid: int, *, own: bool = False) -> list[bytes]:
        return (words or {}).get((word, OWN_OF_ROOT if own and uid == 0 else uid), [])

    runtime = SimpleNamespace(
        peers=SimpleNamespace(records={each.public: each for each in peers}),
        names=SimpleNamespace(meaning=meaning, hear=lambda some: None),
        engine=SimpleNamespace(table=[]),
    )
    return DaemonService(runtime, examine=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("typed", [fingerprint(OTHER), fingerprint(SERVER)[:-1] + "x", "SHA256:AAAA", "a" * 43])
def test_a_fingerprint_that_was_typed_wrongly_does_not_match(typed: str) -> None:
    with pytest.raises(RequestError, match="does not match") as caught:
        service(peer(SERVER), peer(STRANGER, state=PeerState.APPROVED))._peer("approve", typed)
    assert f"waiting for approval: {fingerprint(SERVER)}" in str(caught.value)
    assert fingerprint(STRANGER) not in str(caught.value)


@pytest.mark.parametrize("typed", ["server", "server.example.net", "198.51.100.9", "", "SHA256"])
def test_a_name_that_nobody_has_is_no_fingerprint(typed: str) -> None:
    with pytest.raises(RequestError, match="no such peer"):
        service(peer(SERVER))._peer("approve", typed)


@pytest.mark.parametrize("order", [1, -1])
def test_an_address_is_the_host_that_answered_there(order: int) -> None:
    """A stranger's first contact came from it too, forged or not."""
    both = [peer(SERVER, (ADDRESS, True)), peer(STRANGER, (ADDRESS, False))][::order]
    assert service(*both)._peer("approve", ADDRESS).public == SERVER


def test_an_address_that_only_called_is_nobody() -> None:
    listed = service(peer(STRANGER, (ADDRESS, False)), peer(OTHER, ("203.0.113.1", False)))
    with pytest.raises(RequestError) as caught:
        listed._peer("approve", ADDRESS)
    assert fingerprint(STRANGER) in str(caught.value)
    assert fingerprint(OTHER) not in str(caught.value)
    assert "name its fingerprint" in str(caught.value)
    assert listed._peer("approve", fingerprint(STRANGER)).public == STRANGER


def test_where_two_keys_have_answered_the_fingerprints_are_told() -> None:
    both = service(peer(SERVER, (ADDRESS, True)), peer(OTHER, (ADDRESS, True), state=PeerState.CHANGED))
    with pytest.raises(RequestError, match="2 peers match") as caught:
        both._peer("approve", ADDRESS)
    assert fingerprint(SERVER) in str(caught.value)
    assert fingerprint(OTHER) in str(caught.value)
    with pytest.raises(RequestError, match="no such peer"):
        both._peer("approve", "198.51.100.3")


def test_a_changed_key_is_not_told_with_the_key_of_who_only_called_from_there() -> None:
    peers = {
        each.public: each
        for each in (
            peer(SERVER, (ADDRESS, True), state=PeerState.APPROVED),
            peer(OTHER, (ADDRESS, True), state=PeerState.CHANGED),
            peer(STRANGER, (ADDRESS, False)),
        )
    }
    refused = Connection(b"c" * 8, OWN, OWN, 0.0, state=State.REFUSED, reason="key-changed")
    (question,) = watching._questions([refused], peers, may_decide=True)
    assert (question.fingerprint, question.known) == (fingerprint(OTHER), [fingerprint(SERVER)])


def test_a_question_names_the_addresses_at_which_the_host_answered() -> None:
    pending = Connection(b"c" * 8, OWN, OWN, 0.0, state=State.PENDING, peer=SERVER)
    peers = {SERVER: peer(SERVER, (ADDRESS, True), ("203.0.113.66", False))}
    (question,) = watching._questions([pending], peers, may_decide=True)
    assert question.addresses == [ADDRESS]


ALICE, ROOT = (Caller(1, uid, frozenset()) for uid in (1000, 0))


def test_a_word_of_the_callers_command_line_is_a_name() -> None:
    listed = service(peer(SERVER), peer(OTHER), words={("server", 1000): [SERVER]})
    assert listed._peer("approve", "server", ALICE).public == SERVER
    for nobody in (ROOT, None):
        with pytest.raises(RequestError, match="no such peer"):
            listed._peer("approve", "server", nobody)


def test_root_approves_nothing_by_another_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can have his ssh lead to any host by the word that root means another by."""
    logged_in: list[int | None] = [None]
    monkeypatch.setattr(procfs, "login", lambda pid: logged_in[0])
    listed = service(peer(STRANGER), words={("server", 1000): [STRANGER], ("server", 0): [STRANGER]})
    for logged_in[0] in (None, 0, 2000):
        with pytest.raises(RequestError, match="another user's command calls this host so") as caught:
            listed._peer("approve", "server", ROOT)
        assert fingerprint(STRANGER) in str(caught.value)
    assert listed._peer("reject", "server", ROOT).public == STRANGER, "nothing is trusted by that"
    assert listed._peer("approve", fingerprint(STRANGER), ROOT).public == STRANGER
    logged_in[0] = 1000  # his own, with sudo
    assert listed._peer("approve", "server", ROOT).public == STRANGER
    logged_in[0] = None
    roots = service(peer(SERVER), words={("server", 0): [SERVER], ("server", OWN_OF_ROOT): [SERVER]})
    assert roots._peer("approve", "server", ROOT).public == SERVER


def test_a_word_that_means_two_hosts_is_no_name() -> None:
    listed = service(peer(SERVER), peer(OTHER), words={("server", 1000): [SERVER, OTHER]})
    with pytest.raises(RequestError, match="2 peers match"):
        listed._peer("approve", "server", ALICE)


def test_the_name_that_a_person_gave_comes_before_words() -> None:
    listed = service(peer(SERVER, name="office"), peer(OTHER, name="server"), words={("server", 1000): [SERVER]})
    assert listed._peer("approve", "server", ALICE).public == OTHER
    only = service(peer(SERVER, name="office"), words={("server", 1000): [SERVER]})
    with pytest.raises(RequestError, match="no such peer"):
        only._peer("approve", "server", ALICE)


def test_a_key_that_begins_as_a_host_is_called_is_not_that_host() -> None:
    """Who makes keys until one's fingerprint begins with "web" waits for somebody who types `approve web`."""
    made = peer(STRANGER)
    word = made.fingerprint.removeprefix("SHA256:")[:4]
    alone = service(made)
    with pytest.raises(RequestError, match="of another host's key too") as caught:
        alone._peer("approve", word, ALICE)
    assert made.fingerprint in str(caught.value)
    both = service(made, peer(SERVER), words={(word, 1000): [SERVER]})
    assert both._peer("approve", word, ALICE).public == SERVER
    assert alone._peer("approve", f"SHA256:{word}").public == STRANGER, "that is no name"
    assert alone._peer("approve", made.fingerprint[:27]).public == STRANGER
    assert alone._peer("reject", word).public == STRANGER, "nothing is trusted by that"


def test_what_a_peer_calls_itself_is_no_name() -> None:
    listed = service(peer(STRANGER, (ADDRESS, False), says="server"))
    for text in ("server", '"server"'):
        with pytest.raises(RequestError, match="no such peer"):
            listed._peer("approve", text, ROOT)


def test_two_behind_one_nat_are_told_apart_where_their_address_is_named() -> None:
    both = service(peer(SERVER, (ADDRESS, False), says="red"), peer(OTHER, (ADDRESS, False), says="blue"))
    with pytest.raises(RequestError) as caught:
        both._peer("approve", ADDRESS, ROOT)
    for key, name in ((SERVER, "red"), (OTHER, "blue")):
        assert f'{fingerprint(key)} ("{name}")' in str(caught.value)
