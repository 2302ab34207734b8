"""Daemons that go at some moment and come back, while something else happens; what both long workloads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from redirectctl.lab.daemons import Daemon
from tests.netns.daemon_pair import stop_without_a_trace, wait_nothing_held


@contextmanager
def going(daemons: Sequence[Daemon], after: float, down: float, how: str = "SIGKILL") -> Iterator[None]:
    """While the body runs, these are killed (or stopped: "SIGTERM") after so many seconds and started again later.

    Ends when they are back.  Raises what kept them from it.
    """
    failures: list[BaseException] = []

    def go() -> None:
        try:
            time.sleep(after)
            for daemon in daemons:
                daemon.kill() if how == "SIGKILL" else daemon.stop()
            time.sleep(down)
            for daemon in daemons:
                daemon.start()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=go, name="killer")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def stop_clean(daemons: Sequence[Daemon], *, known: Collection[str] = ()) -> None:
    """All connections have ended: nothing is held for them, doctor finds nothing, and stopping leaves no trace.

    ``known``: checks of doctor that may well find something.
    """
    wait_nothing_held(daemons)
    for daemon in daemons:
        found = {name: what for name, what in daemon.doctor().items() if name not in known}
        assert not found, f"doctor on {daemon.host.name}: {found}"
    stop_without_a_trace(daemons)
