"""The values behind the screens: rows, rates, the journal, words, plots."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from redirectctl.api.naming import labels
from redirectctl.api.schema import ConnectionState, Counters, Event, EventName
from redirectctl_tui.journal import KEPT, Journal, median
from redirectctl_tui.model import SORTS, Rates, Selection, target_error
from redirectctl_tui.screens.contact import who
from redirectctl_tui.screens.details import timeline
from redirectctl_tui.screens.network import addresses, observations
from redirectctl_tui.widgets.lines import fitted
from redirectctl_tui.widgets.plot import bars
from redirectctl_tui.words import (
    Tone,
    amount,
    brief,
    explained,
    explained_fully,
    in_short,
    progress,
    state_cell,
    took,
)
from tests.tui.recorded import scene


class TestSelection:
    rows = scene("changed").view.rows()

    def test_a_filter_wants_every_word_somewhere(self):
        def states(words: str) -> set[str]:
            return {row.connection.state.value for row in Selection(words).apply(self.rows)}

        assert states("SSH Refused") == {"refused"}
        assert states("key-changed") == states("another key") == {"refused"}
        assert states("ssh nowhere") == set()
        assert len(Selection("").apply(self.rows)) == len(self.rows)

    @pytest.mark.parametrize("sort", SORTS)
    def test_every_sort_has_all_rows_and_can_be_reversed(self, sort: str):
        there, back = Selection("", sort).apply(self.rows), Selection("", sort, reverse=True).apply(self.rows)
        assert {row.connection.id for row in there} == {row.connection.id for row in self.rows}
        assert there == back[::-1]

    def test_what_wants_attention_is_first(self):
        order = [row.connection.state for row in Selection().apply(self.rows)]
        assert order.index(ConnectionState.SUSPENDED) < order.index(ConnectionState.UNSUPPORTED)

    def test_a_named_peer_is_called_by_its_name(self):
        assert {row.host for row in self.rows if row.connection.state == "suspended"} == {"server"}


def test_rates_are_of_counters_that_grow():
    (c, *_) = scene("protected").view.connections

    def counted(received: int, sent: int) -> list:  # type: ignore[type-arg]
        return [msgspec.structs.replace(c, counters=Counters(rtt=0, sent=sent, received=received, retransmitted=0))]

    rates = Rates()
    assert rates.update(10.0, counted(1000, 50)) == {}
    assert rates.update(12.0, counted(5000, 50)) == {c.id: (2000.0, 0.0)}
    assert rates.update(13.0, counted(5000, 50)) == {}
    assert rates.update(14.0, counted(0, 60)) == {c.id: (0.0, 10.0)}  # the counters of another socket


@pytest.mark.parametrize("text", ["1", "4711", "192.0.2.1:1-198.51.100.2:22", "[2001:db8::1]:1-[2001:db8::2]:65535"])
def test_a_target(text: str):
    assert target_error(text) is None


@pytest.mark.parametrize("text", ["", "-1", "x", "1.2.3.4:5", "1.2.3.4:5-", "1.2.3.4:5-6.7.8.9:0", "a:1-b:2", "٣"])
def test_no_target(text: str):
    assert target_error(text) is not None


class TestJournal:
    """What becomes of events is tested in tests/unit/api/test_stories.py."""

    def test_what_really_happened_reads_as_a_story(self):
        shown = scene("resumed")
        journal = Journal()
        journal.add(shown.events)
        journal.tick(shown.events[-1].time + 60)
        whats = [entry.what for entry in journal.entries]
        assert whats[0] == "redirectd started"
        assert whats.index("first contact") < whats.index("approved")
        moves = [entry for entry in journal.entries if entry.what.startswith("moved to ")]
        assert 0 < len(moves) < len([e for e in shown.events if e.event is EventName.MOVE_FINISHED])
        assert not any(entry.tone is Tone.BAD for entry in journal.entries)
        assert max(journal.gaps) > 12  # the scene's outage
        assert all(gap > 0 for gap in journal.gaps)
        assert not any(what.startswith(("announcing", "suspended", "resumed")) for what in whats)

    def test_what_programs_felt_counts_not_what_daemons_took(self):
        journal = Journal()
        journal.add(
            [
                Event(time=1.0, event=EventName.MOVE_STARTED, peer="p", reason="address-changed", address="b", epoch=1),
                Event(
                    time=1.5,
                    event=EventName.MOVE_FINISHED,
                    peer="p",
                    address="b",
                    previous="a",
                    duration=0.5,
                    gap=4.0,
                    epoch=1,
                ),
            ]
        )
        journal.tick(60.0)
        assert journal.gaps == [4.0]
        assert [(entry.gap, entry.took) for entry in journal.entries] == [(4.0, 0.5)]

    def test_a_move_that_has_not_finished_is_seen(self):
        journal = Journal()
        event = Event(time=1.0, event=EventName.CONNECTION_SUSPENDED, connection="1", peer="SHA256:x", reason="no-path")
        journal.add([event])
        journal.tick(1000.0)
        (entry,) = journal.entries
        assert (entry.what, entry.tone, entry.connections) == ("no path", Tone.WAITING, 1)
        assert journal.gaps == []

    def test_what_happens_to_many_at_once_is_one_line(self):
        journal = Journal()
        journal.add(
            Event(
                time=1.0 + n / 1e4, event=EventName.CONNECTION_SUSPENDED, connection=f"{n}", peer="p", reason="no-path"
            )
            for n in range(1000)
        )
        (entry,) = journal.entries
        assert (entry.connections, entry.what) == (1000, "no path")
        assert entry.reason == "no-path"

    def test_refusals_say_why(self):
        journal = Journal()
        journal.add([Event(time=1.0, event=EventName.REDIRECT_REFUSED, reason="kernel", detail="nft: no memory")])
        assert (journal.entries[0].reason, journal.entries[0].detail) == ("kernel", "nft: no memory")

    def test_it_is_bounded(self):
        journal = Journal()
        journal.add(Event(time=float(n), event=EventName.DAEMON_STARTED) for n in range(KEPT + 10))
        assert len(journal.entries) == KEPT

    def test_text_of_others_is_escaped(self):
        journal = Journal()
        journal.add([Event(time=1.0, event=EventName.ADDRESS_ADDED, address="\x1b[2J", interface="e\x07")])
        assert journal.entries[0].what == "\\x1b[2J (e\\x07) came"


def test_the_timeline_of_a_connection_has_states_and_moves_in_order():
    shown = scene("resumed")
    journal = Journal()
    journal.add(shown.events)
    c = next(c for c in shown.connections.values() if c.moves == 5)
    lines = timeline(c, journal.of_connection(c.id))
    assert [at for at, _ in lines] == sorted(at for at, _ in lines)
    whats = [what for _, what in lines]
    assert whats[0] == "short"
    assert "negotiating" in whats
    assert len([what for what in whats if what.startswith(("rewritten: ", "tunnel: "))]) >= 5
    assert any(re.fullmatch(r"protected again, after \d\ds without a path", what) for what in whats)
    # After a restart of the daemon the log has to do for what was before.
    assert c.history
    without = msgspec.structs.replace(c, history=list(c.history)[-1:])
    assert "suspended" in [what for _, what in timeline(without, journal.of_connection(c.id))]


def test_addresses_have_their_network_and_interface():
    status = scene("nat").view.status
    assert addresses(status) == ["10.0.3.10/24 on eth0", "fd00:3::a/64 on eth0"]
    assert addresses(msgspec.structs.replace(status, networks=UNSET)) == status.addresses


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        ("198.51.100.21:7747", ["198.51.100.21:7747 by server"]),
        ("[2001:db8:2::15]:7747", ["[2001:db8:2::15]:7747 by server"]),
        ("198.51.100.21:4711", ["198.51.100.21:4711 by server, another port: NAT"]),
        ("203.0.113.99:7747", ["203.0.113.99:7747 by server: NAT"]),
        (UNSET, []),
    ],
)
def test_where_peers_see_this_host_tells_of_nat(observed: str | UnsetType, said: list[str]):
    view = scene("moved").view
    peers = [msgspec.structs.replace(peer, observed=observed) for peer in view.peers]
    assert observations(replace(view, peers=peers)) == said


def test_median():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.0


class TestWords:
    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (12345, "12kB"),
            (999_600, "1.0MB"),
            (7.8e6, "7.8MB"),
            (2e15, "2000TB"),
        ],
    )
    def test_amounts(self, count: float, text: str):
        assert amount(count) == text

    @pytest.mark.parametrize(("seconds", "text"), [(0.0004, "0.4ms"), (0.21, "210ms"), (3.44, "3.4s"), (75, "1m 15s")])
    def test_short_times(self, seconds: float, text: str):
        assert took(seconds) == text

    @pytest.mark.parametrize(("seconds", "text"), [(0.9, "0s"), (59, "59s"), (61, "1m"), (7200, "2h"), (1e6, "11d")])
    def test_brief_times(self, seconds: float, text: str):
        assert brief(seconds) == text

    def test_a_short_connection_is_seen_growing(self):
        (c,) = (c for c in scene("first_contact").view.connections if c.state is ConnectionState.SHORT)
        cells = [state_cell(msgspec.structs.replace(c, age=age), 10.0).text for age in (0.0, 4.0, 10.0)]
        assert cells == ["○ short ─────", "○ short ━━───", "○ short ━━━━━"]

    def test_for_how_long_it_is_suspended(self):
        (c, *_) = scene("suspended").view.connections
        assert state_cell(c, 10.0).text.startswith("‖ suspended 1")

    def test_progress_stays_in_its_cells(self):
        assert {len(progress(part)) for part in (0.0, 0.5, 1.0, 7.0)} == {5}

    def test_unknown_reasons_are_shown_as_they_are(self):
        assert explained("brand-new\x1b") == in_short("brand-new\x1b") == "brand-new\\x1b"

    def test_reasons_are_put_into_words_with_what_can_be_done(self):
        assert in_short("no-path") == "no address of this host reaches the other one"
        assert explained("no-path") == explained_fully("no-path") == f"{in_short('no-path')} (no-path)"
        assert explained_fully("released-there").splitlines() == ["a person released it there (released-there)"]
        meaning, hint = explained_fully("port-not-accepted").splitlines()
        assert meaning == f"{explained('port-not-accepted')}"
        assert hint == "→ see protect.accept_ports there"
        assert explained("kernel: no\x1b memory") == "the kernel refused the rules: no\\x1b memory (kernel)"
        assert explained_fully(None) == in_short(None) == ""


class TestDrawing:
    @pytest.mark.parametrize(
        ("text", "width", "right", "drawn"),
        [
            ("abc", 5, False, "abc  "),
            ("abc", 5, True, "  abc"),
            ("abcdef", 4, False, "abc…"),
            ("日本語", 6, False, "日本語"),
            ("日本語", 5, False, "日本…"),
            ("日本語", 4, False, "日 …"),
            ("x", 0, False, ""),
        ],
    )
    def test_text_is_fitted_into_its_cells(self, text: str, width: int, right: bool, drawn: str):
        assert fitted(text, width, right=right) == drawn

    def test_bars(self):
        assert bars([0.0, 1.0, 2.0, 4.0], 2) == ["   █", " ▄██"]
        assert bars([], 2) == ["", ""]
        assert bars([0.0, 0.0], 1) == ["  "]
        assert bars([1e-9, 1.0], 1) == ["▁█"]  # what is more than nothing is seen

    def test_logarithmic_bars_begin_at_a_hundredth(self):
        assert bars([1.0, 10.0, 100.0], 1, logarithmic=True) == ["▁▄█"]


def test_two_that_call_from_behind_one_nat_are_told_apart():
    (one, *_) = scene("protected").view.peers
    red = msgspec.structs.replace(one, fingerprint="SHA256:red", name=None, says="red", addresses=["203.0.113.5"])
    blue = msgspec.structs.replace(red, fingerprint="SHA256:blue", says="bl\x1bue")
    text = who(blue, [], [red, blue]).plain
    assert 'It calls itself "bl\\x1bue"; nobody has confirmed that.' in text
    assert "1 other host known at this address: compare the fingerprint." in text
    assert "known at this address" not in who(blue, [], [blue]).plain
    assert labels([red, blue]) == {"SHA256:red": '"red"', "SHA256:blue": '"bl\\x1bue"'}
