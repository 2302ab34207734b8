"""Every screen as it looks, at 80x24 and 120x40, with what real daemons said (record.py).

After a wanted change: pytest tests/tui/test_snapshots.py --snapshot-update, and look at what has changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from redirectctl_tui.app import RedirectApp
from tests.tui.recorded import Recorded, scene

SIZES = pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
SCREENS = {
    "first-contact": ("first_contact", ()),
    "short": ("first_contact", ("escape",)),
    "protected": ("protected", ()),
    "suspended": ("suspended", ()),
    "suspended-connection": ("suspended", ("enter",)),
    "suspended-moves": ("suspended", ("3",)),
    "relayed": ("relayed", ()),
    "relayed-connection": ("relayed", ("enter",)),
    "relayed-moves": ("relayed", ("3",)),
    "unsupported": ("protected", ("end",)),
    "changed-key": ("changed", ()),
    "connection": ("nat", ("down", "enter")),
    "kill": ("protected", ("k",)),
    "protect": ("protected", ("p", "x", "enter")),
    "filter": ("protected", ("slash", "s", "c", "p", "enter", "escape", "slash", "u", "n", "s", "u")),
    "peer-doctor": ("nat", ("2", "d")),
    "peers": ("changed", ("escape", "2")),
    "peer": ("nat", ("2", "enter")),
    "moves": ("resumed", ("3",)),
    "move": ("resumed", ("3", "down", "enter")),
    "network": ("nat", ("4",)),
    "help": ("protected", ("question_mark",)),
}


def quiet(keys: tuple[str, ...], *, lost: bool = False) -> Callable[[Pilot[None]], Awaitable[None]]:
    """Press keys; after each wait for what was asked."""

    async def before(pilot: Pilot[None]) -> None:
        await settle(pilot)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)
        if lost:
            app: Any = pilot.app
            app._source.lose("no daemon listens there; start redirectd", app._clock() - 12)
            await settle(pilot)

    return before


async def settle(pilot: Pilot[None]) -> None:
    for line in pilot.app.screen.query(Input):
        line.cursor_blink = False
        line._cursor_visible = True
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


@SIZES
@pytest.mark.parametrize("screen", SCREENS)
def test_looks_as_ever(screen: str, size: tuple[int, int], snap_compare: Any):
    name, keys = SCREENS[screen]
    shown = scene(name)
    app = RedirectApp(Recorded(shown), "laptop", lambda: shown.view.at)
    assert snap_compare(app, terminal_size=size, run_before=quiet(keys))


def test_a_daemon_that_is_gone_looks_as_ever(snap_compare: Any):
    shown = scene("protected")
    app = RedirectApp(Recorded(shown), "laptop", lambda: shown.view.at)
    assert snap_compare(app, terminal_size=(80, 24), run_before=quiet((), lost=True))
