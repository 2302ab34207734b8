"""What a person does, and what is asked of the daemon because of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import msgspec
import pytest
from msgspec import UNSET
from rich.text import Text
from textual.filter import NoColor
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static, TabbedContent

from redirectctl.api import schema
from redirectctl.api.schema import Check, CheckStatus, Connection, ConnectionState, Peer, PeerState, RequestError
from redirectctl_tui.app import RedirectApp
from redirectctl_tui.model import Row
from redirectctl_tui.screens.connections import ConnectionsPane
from redirectctl_tui.screens.contact import Contact
from redirectctl_tui.screens.details import Details
from redirectctl_tui.screens.dialogs import Ask, Confirm, Page
from redirectctl_tui.screens.network import NetworkPane
from redirectctl_tui.screens.peers import PeersPane
from tests.tui.recorded import Recorded, Scene, scene

WATCHING = (schema.PeerRequest, schema.ConnectionRequest, schema.IdentityRequest, schema.DoctorRequest)


class Session:
    """The app, its keyboard, and the daemon behind it."""

    def __init__(self, app: RedirectApp, pilot: Pilot[None], daemon: Recorded) -> None:
        self.app = app
        self.pilot = pilot
        self.daemon = daemon

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def type(self, text: str) -> None:
        """All at once, as a paste."""
        line = self.app.focused
        assert isinstance(line, Input)
        line.insert_text_at_cursor(text)
        await self.settle()

    async def settle(self) -> None:
        await self.app.workers.wait_for_complete()
        await self.pilot.pause()

    async def show(self, shown: Scene) -> None:
        self.daemon.show(shown)
        await self.settle()

    @property
    def asked(self) -> list[schema.Request]:
        """What was asked to be done; what was only asked to be shown is left out."""
        return [request for request in self.daemon.asked if not isinstance(request, WATCHING)]

    @property
    def rows(self) -> list[Row]:
        return list(self.app.query_one(ConnectionsPane).table.rows)

    @property
    def current(self) -> Row:
        row = self.app.query_one(ConnectionsPane).table.current
        assert row is not None
        return row

    @property
    def notices(self) -> list[str]:
        return [notice.message for notice in self.app._notifications]

    def text(self, selector: str) -> str:
        return str(self.app.screen.query_one(selector, Static).content)


Start: TypeAlias = Callable[..., Awaitable[Session]]


@asynccontextmanager
async def session(name: str, size: tuple[int, int] = (100, 30), changed: Scene | None = None) -> AsyncIterator[Session]:
    shown = changed or scene(name)
    daemon = Recorded(shown)
    app = RedirectApp(daemon, "laptop", lambda: shown.view.at)
    async with app.run_test(size=size) as pilot:
        one = Session(app, pilot, daemon)
        await one.settle()
        yield one


def with_connections(shown: Scene, connections: list[Connection]) -> Scene:
    return msgspec.structs.replace(shown, view=replace(shown.view, connections=connections))


def with_peers(shown: Scene, peers: list[Peer]) -> Scene:
    return msgspec.structs.replace(shown, view=replace(shown.view, peers=peers))


def approved(shown: Scene) -> Scene:
    return with_peers(shown, [msgspec.structs.replace(p, state=PeerState.APPROVED) for p in shown.view.peers])


class TestConnections:
    async def test_kill_asks_first(self):
        async with session("protected") as s:
            wanted = s.current.connection.id
            await s.press("k")
            assert isinstance(s.app.screen, Confirm)
            await s.press("enter")  # the focus is on Cancel
            assert s.asked == []
            await s.press("k", "right", "enter")
            assert s.asked == [schema.KillRequest(wanted)]
            assert any(text.startswith("killed ") for text in s.notices)

    async def test_escape_is_no(self):
        async with session("protected") as s:
            await s.press("k", "escape")
            assert len(s.app.screen_stack) == 1
            assert s.asked == []

    async def test_release(self):
        async with session("protected") as s:
            await s.press("down")
            wanted = s.current.connection.id
            await s.press("r", "right", "enter")
            assert s.asked == [schema.ReleaseRequest(wanted)]
            assert s.daemon.pokes  # what it did is looked at soon

    async def test_a_refusal_is_shown_with_what_to_do(self):
        async with session("protected") as s:
            s.daemon.refuse = RequestError("release", "no such connection", "see `redirectctl connections`")
            await s.press("r", "right", "enter")
            assert "release: no such connection; see `redirectctl connections`" in s.notices

    async def test_what_has_ended_is_left_alone(self):
        shown = scene("protected")
        ended = [msgspec.structs.replace(c, state=ConnectionState.CLOSED) for c in shown.view.connections]
        async with session("", changed=with_connections(shown, ended)) as s:
            await s.press("k")
            assert s.asked == []
            assert s.notices == ["it has ended already"]

    async def test_protect_takes_a_process_or_a_connection(self):
        async with session("protected") as s:
            await s.press("p")
            await s.type("12a")
            await s.press("enter")
            assert isinstance(s.app.screen, Ask)
            assert "neither a process number" in s.text("#wrong")
            await s.press("backspace", "enter")
            assert s.asked == [schema.ProtectRequest("12")]
            await s.press("p")
            await s.type("192.0.2.1:40000-198.51.100.2:22")
            await s.press("enter")
            assert s.asked[-1] == schema.ProtectRequest("192.0.2.1:40000-198.51.100.2:22")

    async def test_filter(self):
        async with session("protected") as s:
            everything = len(s.rows)
            await s.press("slash")
            await s.type("ssh unsup")
            assert [row.connection.state for row in s.rows] == [ConnectionState.UNSUPPORTED]
            await s.press("enter")
            assert len(s.rows) == 1  # and the keys are the table's again
            await s.press("k")
            assert isinstance(s.app.screen, Confirm)
            await s.press("escape", "escape")
            assert len(s.rows) == everything

    async def test_sort_by_key_and_by_title(self):
        async with session("protected") as s:
            while s.app.query_one(ConnectionsPane).selection.sort != "age":
                await s.press("s")
            ages = [row.connection.age for row in s.rows]
            assert ages == sorted(ages, reverse=True)
            await s.press("S")
            assert [row.connection.age for row in s.rows] == sorted(ages)
            await s.pilot.click("#table", offset=(3, 0))
            await s.settle()
            hosts = [row.host for row in s.rows]
            assert hosts == sorted(hosts)

    async def test_the_cursor_stays_with_its_connection(self):
        shown = scene("protected")
        async with session("protected") as s:
            await s.press("down", "down")
            kept = s.current.connection.id
            await s.show(with_connections(shown, list(reversed(shown.view.connections))))
            assert s.current.connection.id == kept
            await s.press("S")
            assert s.current.connection.id == kept
            await s.show(with_connections(shown, [c for c in shown.view.connections if c.id == kept]))
            assert s.current.connection.id == kept
            await s.show(with_connections(shown, []))
            assert s.rows == []

    async def test_mouse(self):
        async with session("protected") as s:
            await s.pilot.click("#table", offset=(5, 3))
            await s.settle()
            assert s.current == s.rows[2]
            await s.pilot.click("#table", offset=(5, 3), times=2)
            await s.settle()
            assert isinstance(s.app.screen, Details)

    async def test_a_tall_screen_tells_more_of_the_row_with_the_cursor(self):
        async with session("moved", size=(120, 40)) as s:
            c = s.current.connection
            for part in (c.local, c.wire_local, f"process      {c.pid}", "round trip"):
                assert part in s.text("#facts-of-row")
            assert "rewritten: " in s.text("#timeline-of-row")
            await s.press("end")
            assert s.current.connection.state is ConnectionState.UNSUPPORTED
            assert "→ is redirectd running there" in s.text("#facts-of-row")
            here = "192.0.2.99:9"
            listed = [msgspec.structs.replace(each, wire_local=here) for each in s.daemon.scene.view.connections]
            await s.show(with_connections(s.daemon.scene, listed))
            assert here in s.text("#facts-of-row")
            await s.show(with_connections(s.daemon.scene, []))
            assert not s.app.query_one("#preview").visible

    async def test_rows_are_drawn_anew_after_the_table_has_another_size(self):
        """Also when it gets it after its lines have been drawn."""
        shown = scene("protected")
        async with session("protected") as s:
            table = s.app.query_one(ConnectionsPane).table
            table.on_resize()
            aged = [msgspec.structs.replace(c, age=86400.0 * 77) for c in shown.view.connections]
            await s.show(with_connections(shown, aged))
            lines = table.render_lines(Region(0, 1, table.size.width, len(aged)))
            assert all("77d" in strip.text for strip in lines)

    async def test_a_low_screen_says_why_the_row_is_not_protected(self):
        async with session("moved", size=(80, 24)) as s:
            assert not s.app.query_one("#preview").display
            assert "sorted by state" in s.text("#shown")
            await s.press("end")
            assert s.text("#shown").startswith(" unsupported: the other host's redirectd does not")

    async def test_details_follow_the_connection(self):
        moved = scene("moved")
        async with session("moved") as s:
            await s.press("enter")
            text = s.text("#text")
            c = s.daemon.scene.connections[s.app.screen.connection]  # type: ignore[attr-defined]
            ends = (c.local, c.remote, c.wire_local, c.wire_remote, c.peer)
            for part in (*ends, "suspended", "rewritten: ", "round trip"):
                assert part is not None
                assert part in text
            gone = msgspec.structs.replace(moved, connections={})
            await s.show(gone)
            assert "ended" in s.text("#text")
            await s.press("escape")
            assert len(s.app.screen_stack) == 1

    async def test_details_that_come_early_or_late(self):
        """Before the dialog has its parts, and after it has gone."""
        early, page = Details("x"), Page("doctor", Text("looking"))
        early.show(Text("all of it"))
        page.update(Text("all is well"))
        async with session("moved") as s:
            for screen, selector, text in ((early, "#text", "all of it"), (page, ".box Static", "all is well")):
                s.app.push_screen(screen)
                await s.settle()
                assert s.text(selector) == text
                await s.press("escape")
                assert len(s.app.screen_stack) == 1
                late = Text("too late")
                screen.show(late) if isinstance(screen, Details) else screen.update(late)

    async def test_kill_from_the_details(self):
        async with session("moved") as s:
            wanted = s.current.connection.id
            await s.press("enter", "k", "right", "enter")
            assert s.asked == [schema.KillRequest(wanted)]


class TestFirstContact:
    async def test_it_comes_up_by_itself_with_all_that_is_needed_to_decide(self):
        async with session("first_contact") as s:
            assert isinstance(s.app.screen, Contact)
            (peer,) = s.daemon.scene.view.peers
            shown = "\n".join(str(each.content) for each in s.app.screen.query(Static))
            assert peer.fingerprint in shown
            assert peer.addresses[0] in shown
            assert "ssh server sleep 1000" in shown
            assert "redirectctl identity" in shown
            picture = s.daemon.scene.peers[peer.fingerprint].picture
            assert isinstance(picture, str)
            assert picture in shown

    async def test_it_follows_what_becomes_known_while_it_is_open(self):
        """The connection is linked to the peer a moment after the peer is listed."""
        whole = scene("first_contact")
        (peer,), connections = whole.view.peers, whole.view.connections
        early = [msgspec.structs.replace(c, peer=None, state=ConnectionState.SHORT) for c in connections]
        met = msgspec.structs.replace(peer, contacted=UNSET, addresses=[])
        async with session("", changed=with_connections(with_peers(whole, [met]), early)) as s:
            assert "unknown address" in s.text("#who")
            assert "called" not in s.text("#who")  # nobody knows yet who called whom
            asking = [msgspec.structs.replace(c, peer=None, state=ConnectionState.NEGOTIATING) for c in connections]
            await s.show(with_connections(whole, asking))
            assert "wanted by\n  ssh server sleep 1000" in s.text("#who")
            await s.show(whole)
            assert peer.addresses[0] in s.text("#who")
            assert "wanted by\n  ssh server sleep 1000" in s.text("#who")
            await s.show(with_connections(whole, []))
            assert "No connection waits for it now." in s.text("#who")
            await s.press("a", "enter")
            assert s.asked == [schema.ApproveRequest(peer.fingerprint)]

    async def test_a_host_that_called_this_one_is_said_to_have(self):
        whole = scene("first_contact")
        called = [msgspec.structs.replace(p, contacted=False) for p in whole.view.peers]
        async with session("", changed=with_connections(with_peers(whole, called), [])) as s:
            assert "It called this host." in s.text("#who")
            renumbered = [msgspec.structs.replace(p, addresses=["2001:db8::7", *p.addresses]) for p in called]
            await s.show(with_connections(with_peers(whole, renumbered), []))
            assert "2001:db8::7" in s.text("#who")

    async def test_no_single_key_approves(self):
        for key in ("enter", "space"):
            async with session("first_contact") as s:
                await s.press("y", "r", "l", key)
                assert s.asked == []

    async def test_approve(self):
        async with session("first_contact") as s:
            (peer,) = s.daemon.scene.view.peers
            await s.press("a", "enter")
            assert s.asked == [schema.ApproveRequest(peer.fingerprint)]

    async def test_reject(self):
        async with session("first_contact") as s:
            (peer,) = s.daemon.scene.view.peers
            await s.press("r", "enter")
            assert s.asked == [schema.RejectRequest(peer.fingerprint)]

    async def test_later_is_not_asked_again_but_on_demand(self):
        async with session("first_contact") as s:
            await s.press("enter")
            await s.show(s.daemon.scene)
            assert len(s.app.screen_stack) == 1
            assert "1 host waiting for you" in s.text("#top")
            await s.press("w")
            assert isinstance(s.app.screen, Contact)

    async def test_a_decision_made_elsewhere_closes_it(self):
        async with session("first_contact") as s:
            await s.show(approved(s.daemon.scene))
            assert len(s.app.screen_stack) == 1
            assert s.asked == []
            assert any("decided elsewhere" in text for text in s.notices)

    async def test_it_does_not_interrupt_somebody_who_types(self):
        shown = scene("first_contact")
        async with session("", changed=approved(shown)) as s:
            await s.press("slash")
            await s.type("ssh")
            await s.show(shown)
            assert len(s.app.screen_stack) == 1
            await s.press("enter")
            await s.show(shown)
            assert isinstance(s.app.screen, Contact)

    async def test_a_changed_key_cannot_be_approved(self):
        async with session("changed") as s:
            assert isinstance(s.app.screen, Contact)
            assert [button.id for button in s.app.screen.query(Button)] == ["later", "reject"]
            shown = "\n".join(str(each.content) for each in s.app.screen.query(Static))
            for peer in s.daemon.scene.view.peers:  # the known key and the new one
                assert peer.fingerprint in shown
            await s.press("a", "enter")
            assert s.asked == []
            await s.press("2", "a")  # nor from the list
            assert isinstance(s.app.screen, Contact)
            await s.press("a", "r", "enter")
            (changed,) = (p for p in s.daemon.scene.view.peers if p.state is PeerState.CHANGED)
            assert s.asked == [schema.RejectRequest(changed.fingerprint)]


class TestPeers:
    async def test_details(self):
        async with session("resumed") as s:
            await s.press("2", "enter")
            assert isinstance(s.app.screen, Page)
            (peer,) = s.daemon.scene.view.peers
            assert peer.fingerprint in str(s.app.screen.query_one(Static).content)

    async def test_a_tall_screen_shows_the_picture_of_the_key(self):
        async with session("changed", size=(120, 40)) as s:
            await s.press("escape", "2")
            for _ in s.daemon.scene.view.peers:
                peer = s.app.query_one(PeersPane).table.current
                assert peer is not None
                assert peer.fingerprint in s.text("#facts-of-peer")
                assert s.text("#picture-of-peer") == s.daemon.scene.peers[peer.fingerprint].picture
                await s.press("down")

    async def test_doctor_from_here_to_there(self):
        shown = scene("nat")
        route = Check(name="peer.route", status=CheckStatus.FAIL, found="no way there", hint="plug it in")
        async with session("", changed=msgspec.structs.replace(shown, peer_checks=[*shown.checks, route])) as s:
            await s.press("2", "d")
            (peer,) = s.daemon.scene.view.peers
            assert schema.DoctorRequest(peer.fingerprint) in s.daemon.asked
            assert isinstance(s.app.screen, Page)
            lines = [strip.text for strip in s.app.screen.query_one(Static).render_lines(Region(0, 0, 70, 20))]
            assert "failed" in lines[1]
            assert "peer.route" in lines[1]
            assert "plug it in" in lines[2]
            assert not any("kernel.nftables" in line for line in lines)  # that is well, and of this host only

    async def test_rename(self):
        async with session("resumed") as s:
            await s.press("2", "n")
            (peer,) = s.daemon.scene.view.peers
            line = s.app.screen.query_one(Input)
            assert line.value == peer.name
            line.value = ""
            await s.type("x" * 65)
            await s.press("enter")
            assert "at most 64" in s.text("#wrong")
            line.value = "attic"
            await s.press("enter")
            assert s.asked == [schema.RenameRequest(peer.fingerprint, "attic")]
            await s.press("n")
            s.app.screen.query_one(Input).value = ""
            await s.press("enter")
            assert s.asked[-1] == schema.RenameRequest(peer.fingerprint, None)

    @pytest.mark.parametrize(("key", "request_"), [("r", schema.RejectRequest), ("f", schema.ForgetRequest)])
    async def test_what_ends_protection_is_confirmed(self, key: str, request_: type[schema.RejectRequest]):
        async with session("resumed") as s:
            (peer,) = s.daemon.scene.view.peers
            await s.press("2", key, "enter")
            assert s.asked == []
            await s.press(key, "right", "enter")
            assert s.asked == [request_(peer.fingerprint)]

    async def test_approve(self):
        shown = scene("resumed")
        rejected = [msgspec.structs.replace(p, state=PeerState.REJECTED) for p in shown.view.peers]
        async with session("", changed=with_peers(shown, rejected)) as s:
            await s.press("2", "a", "right", "enter")
            assert s.asked == [schema.ApproveRequest(rejected[0].fingerprint)]

    async def test_one_that_is_approved_already(self):
        async with session("resumed") as s:
            await s.press("2", "a")
            assert s.asked == []
            assert s.notices == ["server is approved already"]


class TestTheRest:
    async def test_announce(self):
        async with session("resumed") as s:
            await s.press("3", "a")
            assert s.asked == [schema.AnnounceRequest()]
            assert s.notices == ["announced to 1 peer"]

    async def test_doctor_is_asked_when_it_is_first_seen_and_again_on_demand(self):
        async with session("resumed") as s:
            await s.press("4", "1", "4")
            assert s.daemon.asked.count(schema.DoctorRequest()) == 1
            await s.press("f5")
            assert s.daemon.asked.count(schema.DoctorRequest()) == 2
            assert s.daemon.asked.count(schema.IdentityRequest()) == 1
            assert s.app.query_one(NetworkPane).has_focus

    async def test_tabs_by_key_and_mouse(self):
        async with session("resumed") as s:
            panes = s.app.query_one("#panes", TabbedContent)
            for key, name in (("2", "peers"), ("3", "moves"), ("4", "network"), ("1", "connections")):
                await s.press(key)
                assert panes.active == name
            await s.pilot.click("#--content-tab-moves")
            await s.settle()
            assert panes.active == "moves"

    async def test_everything_is_in_the_command_palette(self):
        async with session("resumed") as s:
            titles = {command.title for command in s.app.get_system_commands(s.app.screen)}
            assert titles >= {
                "Connections",
                "Peers",
                "Moves",
                "Network",
                "Protect",
                "Announce",
                "Doctor",
                "Help",
                "Quit",
            }

    async def test_a_daemon_that_restarts(self):
        async with session("protected") as s:
            rows = s.rows
            s.daemon.lose("no daemon listens there; start redirectd", s.app._clock() - 3)
            await s.settle()
            assert "No answer from redirectd for 3s, trying again: no daemon listens there; start redirectd" in s.text(
                "#lost"
            )
            assert s.rows == rows  # what was known stays in sight
            await s.show(scene("protected"))
            assert not s.app.query_one("#lost").display
            assert s.notices == ["redirectd is back"]

    async def test_help_and_quit(self):
        async with session("resumed") as s:
            await s.press("question_mark")
            assert isinstance(s.app.screen, Page)
            await s.press("question_mark", "q")
        assert s.app.return_code == 0

    @pytest.mark.parametrize("where", [(), ("4",), ("k",), ("question_mark",), ("slash",), ("p",)])
    async def test_ctrl_c_quits(self, where: tuple[str, ...]):
        """From every pane, dialog and line that is typed in."""
        async with session("protected") as s:
            await s.press(*where)
            asked = list(s.asked)
            await s.pilot.press("ctrl+c")
            await s.pilot.pause()
            assert s.app._exit
        assert s.app.return_code == 0
        assert s.asked == asked

    async def test_text_of_others_does_not_steer_the_terminal(self):
        shown = scene("protected")
        evil = "\x1b]0;owned\x07[bold red]x[/]"
        connections = [msgspec.structs.replace(c, command=evil) for c in shown.view.connections]
        async with session("", changed=with_connections(shown, connections), size=(120, 40)) as s:
            svg = s.app.export_screenshot()
            assert "\x1b" not in svg
            assert "\\x1b]0;owned" in svg.replace("&#160;", " ")
            await s.press("k")
            assert "[bold red]x[/]" in str(s.app.screen.query_one("Label", Static).content)

    async def test_without_colour(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("NO_COLOR", "1")
        async with session("suspended") as s:
            assert NoColor in {type(each) for each in s.app._filters}  # not grey on black: none at all
            strips = s.app.query_one(ConnectionsPane).table.render_line(1)
            assert any(segment.style and segment.style.reverse for segment in strips)
            assert "suspended" in strips.text
