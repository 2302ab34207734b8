"""sd_notify(3): tells systemd how the daemon is."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

PINGS: Final = 3  # in the time after which systemd restarts us: one may be late (sd_watchdog_enabled(3) asks for two)


def notify(state: str) -> None:
    """Send ``READY=1`` and the like; nothing happens where nobody asked for it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return  # whoever started us is gone: no reason to stop


def watchdog_timeout() -> float | None:
    """Seconds without a sign of life after which systemd restarts this process; None: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # inherited: meant for a process above us
    try:
        timeout = int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None
    return timeout if timeout > 0 else None


async def keep_watchdog_quiet(dead: Callable[[], list[str]]) -> None:
    """Give signs of life for as long as nothing is dead, in words; returns at once where nobody waits for them."""
    timeout = watchdog_timeout()
    if timeout is None:
        return
    while True:
        if words := dead():
            _log.error("systemd is to restart this process: %s", "; ".join(words))
        else:
            notify("WATCHDOG=1")
        await asyncio.sleep(timeout / PINGS)
