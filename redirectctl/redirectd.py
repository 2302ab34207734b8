"""redirectd: the privileged daemon, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from redirectctl import __version__, config, known_peers
from redirectctl.api.optin import socket_path
from redirectctl.config import Config, ConfigError
from redirectctl.daemon.apiserver import ApiError, ApiServer
from redirectctl.daemon.notify import keep_watchdog_quiet, notify
from redirectctl.daemon.runtime import Runtime
from redirectctl.daemon.service import DaemonService
from redirectctl.daemon.stderr import complain, start_logging
from redirectctl.daemon.udp import ControlPortError
from redirectctl.daemon.waking import BoottimeLoop
from redirectctl.doctor.examine import examine
from redirectctl.flows.constants import MAX_CONNECTIONS
from redirectctl.kernel.errors import KernelError, used_up
from redirectctl.names import published
from redirectctl.store.records import StoreError

if TYPE_CHECKING:
    from redirectctl.names.secure import Anchors

STATE_DIRECTORY = Path("/var/lib/redirectctl")
DESCRIPTORS = MAX_CONNECTIONS + 4096  # of connections that are suspended, clients, and our own

NICE = -10  # between other programs (0) and what the kernel does itself (-20)

_log = logging.getLogger("redirectd")


def main() -> int:
    """Entry point.  Exit status: 0 stopped, 1 cannot start, 2 usage or configuration."""
    args = make_parser().parse_args()
    start_logging(args.log_level)
    try:
        settings = config.load(args.config)
        listed = known_peers.read(settings.trust.known_peers)
        anchors = _anchors(settings)
    except ConfigError as error:
        complain(error)
        return 2
    if args.check:
        return 0
    if os.geteuid() != 0:
        complain("start: only root may rewrite packets of other programs; run redirectd as root")
        return 1
    _allow_descriptors()
    _hurry()
    try:
        with asyncio.Runner(loop_factory=BoottimeLoop) as runner:
            runner.run(_run(settings, listed, anchors, args))
    except (KernelError, StoreError, ControlPortError, ApiError, OSError) as error:
        complain(_last_words(error))
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options of redirectd."""
    parser = argparse.ArgumentParser(
        prog="redirectd", description="Keeps TCP connections alive across address changes."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"configuration (default {config.DEFAULT_FILE})")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", default=STATE_DIRECTORY, help="keys and connections")
    parser.add_argument("--socket", metavar="PATH", help="Unix socket for redirectctl and redirect-run")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", metavar="LEVEL", choices=levels, default="info", help=", ".join(levels))
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--version", action="version", version=f"redirectd {__version__}")
    return parser


async def _run(settings: Config, listed: dict[str, str], anchors: Anchors | None, args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runtime = Runtime(settings, args.state_dir, listed, anchors)
    server = ApiServer(DaemonService(runtime, examine, args.config), runtime.log, __version__)
    loop.add_signal_handler(signal.SIGHUP, _reload, runtime, args.config)
    await runtime.start()
    await server.start(Path(socket_path(args.socket)))
    notify("READY=1")
    runtime.tasks.start(keep_watchdog_quiet(runtime.loops.dead), "watchdog")
    _log.info("serving; control port %d/udp", settings.control.port)
    await stop.wait()
    notify("STOPPING=1")
    runtime.announce_stop()
    await server.close()
    await runtime.stop()


def _last_words(error: Exception) -> str:
    """Why it cannot start.  Whoever reports that something is used up has perhaps thought of another cause."""
    cause = error if isinstance(error, OSError) else error.__cause__
    hint = used_up(cause)
    if isinstance(cause, OSError) and hint is not None:
        what = "start" if error is cause else str(error).partition(": ")[0]
        return f"{what}: {cause.strerror or cause}; {hint}"
    return str(error)


def _allow_descriptors() -> None:
    """Each suspended connection takes one (kernel/sockets/borrow.py).

    The soft limit is 1,024 for the sake of select(2), which nobody here uses above that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hurry() -> None:
    """Be given a processor at once, where others compute: it needs little, and connections stand still meanwhile.

    A move is some ten short turns of two daemons.  The tunnel's thread, which may have much to do, is as any program
    (kernel/tunnel/carrier.py).
    """
    with suppress(OSError):  # somebody does not want that
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def _anchors(settings: Config) -> Anchors | None:
    """Of DNSSEC, where DNS is to vouch for keys.  Raises ConfigError."""
    return published.load_anchors(settings.trust.anchors) if settings.trust.dns else None


def _reload(runtime: Runtime, path: Path | None) -> None:
    try:
        settings = config.load(path)
        runtime.reload(settings, known_peers.read(settings.trust.known_peers), _anchors(settings))
    except ConfigError as error:
        _log.error("configuration not changed: %s", error)
        return
    _log.info("configuration read again")


if __name__ == "__main__":
    sys.exit(main())
