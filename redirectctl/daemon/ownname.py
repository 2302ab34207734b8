"""Keeps this host's own name in DNS up to date, for peers that have lost it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from redirectctl.api.schema import EventName
from redirectctl.config import Dns
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.loops import Pulse
from redirectctl.names import update
from redirectctl.names.tsigkey import KeyFileError, TsigKey, read
from redirectctl.names.update import OwnName, UpdateError
from redirectctl.wire.addr import IPAddress

_log = logging.getLogger(__name__)

RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)  # seconds after each failure, the last ones again
SETTLING = 3.0  # seconds of no answer from the server before it is told: an address comes some time before its route
AFRESH = 3600.0  # seconds after which it is published again: somebody may have changed it


class OwnNameKeeper:
    """One update at a time, always of the newest addresses."""

    def __init__(
        self, log: EventLog, addresses: Callable[[], Collection[IPAddress]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``addresses``: the usable ones of this moment."""
        self._log = log
        self._addresses = addresses
        self._clock = clock
        self._settings = Dns()
        self._changed = asyncio.Event()
        self._done: frozenset[IPAddress] | None = None  # what is published, as far as we know
        self.failure: UpdateError | None = None  # of the last attempt
        self._told: str | None = None  # the reason of the last dns.failed, until an update succeeds
        self._silence: tuple[frozenset[IPAddress], float] | None = None  # what gets no answer, and since when

    def configure(self, settings: Dns) -> None:
        """The configuration has been read (again)."""
        if settings != self._settings:
            self._settings, self._done = settings, None
            self.failure = self._told = self._silence = None
            self._changed.set()

    def network_changed(self) -> None:
        """Addresses may have changed."""
        self._changed.set()

    @property
    def own(self) -> OwnName | None:
        """What is kept up to date; None: nothing is."""
        dns = self._settings
        if not dns.name:
            return None
        host, _, port = dns.server.rpartition(":")
        return OwnName(dns.name, dns.zone, host.strip("[]"), int(port), max(1, round(dns.ttl)))

    def wanted(self) -> frozenset[IPAddress]:
        """What the name should lead to."""
        return update.publishable(self._addresses(), private=self._settings.private)

    async def run(self, pulse: Pulse) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            pulse.beat()
            self._changed.clear()
            own, wanted = self.own, self.wanted()
            pause: float | None = AFRESH if own is not None else None
            if own is not None and wanted and wanted != self._done:
                error = await self._attempt(own, wanted)
                if error is None:
                    failures = 0
                elif not self._changed.is_set():
                    pause = RETRIES[min(failures, len(RETRIES) - 1)]
                    failures += 1
            if not self._changed.is_set() and not await pulse.wait(self._changed, pause) and pause == AFRESH:
                self._done = None
            elif self._changed.is_set():
                failures = 0

    async def _attempt(self, own: OwnName, wanted: frozenset[IPAddress]) -> UpdateError | None:
        """One update, given up when the addresses are others meanwhile."""
        attempt = asyncio.ensure_future(self._publish(own, wanted))
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({attempt, change}, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done() and self.wanted() == wanted and self.own == own:
                await asyncio.wait({attempt})  # something else changed
        finally:
            for task in (attempt, change):
                task.cancel()
            await asyncio.wait({change})  # not awaited itself: that we are cancelled must not be taken for its end
        if attempt.cancelled() or not attempt.done():
            return UpdateError("superseded", "the addresses have changed again")
        error = attempt.result()
        self._tell(own, wanted, error)
        return error

    async def _publish(self, own: OwnName, wanted: frozenset[IPAddress]) -> UpdateError | None:
        try:
            await update.publish(own, wanted, self._key())
        except UpdateError as error:
            return error
        return None

    def _key(self) -> TsigKey:
        try:
            return read(Path(self._settings.key_file))
        except KeyFileError as error:
            raise UpdateError("key-file", str(error)) from error

    def _tell(self, own: OwnName, wanted: frozenset[IPAddress], error: UpdateError | None) -> None:
        """Every success, and every failure that lasts and is not the same as the last one."""
        self.failure = error
        if error is None:
            self._done, self._told, self._silence = wanted, None, None
            listed = ", ".join(sorted(map(str, wanted)))
            self._log.record(EventName.DNS_UPDATED, detail=f"{own.name} is {listed}")
        elif self._may_pass(wanted, error):
            _log.debug("%s is not up to date yet: %s", own.name, error)
        elif self._told != error.reason:
            self._told = error.reason
            _log.warning("%s is not up to date: %s", own.name, error)
            self._log.record(EventName.DNS_FAILED, reason=error.reason, detail=f"{own.name}: {error.detail}")

    def _may_pass(self, wanted: frozenset[IPAddress], error: UpdateError) -> bool:
        """Whether the server may only be out of reach because the network is not ready: its route comes in a moment."""
        if error.reason != "no-answer-from-server":
            self._silence = None
            return False
        if self._silence is None or self._silence[0] != wanted:
            self._silence = wanted, self._clock()
        return self._clock() - self._silence[1] < SETTLING
