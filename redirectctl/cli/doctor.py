"""redirectctl doctor."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import (
    Check,
    CheckStatus,
    DoctorReply,
    DoctorRequest,
    ErrorCode,
    RequestError,
    StatusReply,
    StatusRequest,
)
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, Failure, ask, connect
from redirectctl.cli.output import paint, print_json

MIN_WIDTH: Final = 20  # of what was found, however narrow the terminal
WIDTH: Final = 100  # columns at most: longer lines are hard to read
DAEMON: Final = "daemon"  # the check that there is one

_WORDS: Final = {
    CheckStatus.OK: "ok",
    CheckStatus.WARN: "warning",
    CheckStatus.FAIL: "failed",
    CheckStatus.SKIP: "skipped",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything, or one peer."""
    parser.add_argument(
        "peer", metavar="HOST", nargs="?", help="check the way to this host: a peer, or any name or address"
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove what a redirectd that no longer runs has left in the kernel"
    )
    parser.add_argument(
        "--force", action="store_true", help="with --clean: also remove what may belong to another program"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", type=Path, help="of that redirectd (default /var/lib/redirectctl)"
    )


def run(args: argparse.Namespace) -> int:
    """Check what could keep it from working.

    Exit code 1 if a check failed.  Without a daemon what needs none is checked: 3 if nothing else is wrong.  Without
    the right to ask it what needs none: 4 if nothing else is wrong.
    """
    if args.force and not args.clean:
        raise Failure("doctor --force: nothing is removed without --clean; add it", ExitCode.USAGE)
    if args.clean and args.peer is not None:
        raise Failure("doctor --clean: is about this host; leave HOST out", ExitCode.USAGE)
    try:
        if args.clean:
            connect(args).close()
            raise Failure(
                "doctor --clean: redirectd runs, and removes by itself what no connection needs; "
                "to remove everything, `systemctl stop redirectd` first"
            )
        checks = ask(args, DoctorRequest(args.peer), DoctorReply).checks
    except RequestError as error:
        if error.error.code is not ErrorCode.DENIED:
            raise
        return _run_without_rights(args, error)
    except UnreachableError as error:
        if args.peer is not None:
            raise
        return _clean(args, error) if args.clean else _run_alone(args, error)
    show(checks, json=args.json)
    return ExitCode.FAILED if _failed(checks) else ExitCode.DONE


def _run_alone(args: argparse.Namespace, unreachable: UnreachableError) -> int:
    from redirectctl.doctor import alone

    missing = Check(
        name=DAEMON, status=CheckStatus.FAIL, found=f"{unreachable.path}: {unreachable.why}", hint=unreachable.hint
    )
    checks = asyncio.run(alone.examine(alone.noted_in(unreachable.path, args.state_dir)))
    show([missing, *checks], json=args.json)
    print(
        f"redirectctl: doctor: {clean(str(unreachable))}; only the checks that need no daemon were made",
        file=sys.stderr,
    )
    return ExitCode.FAILED if _failed(checks) else ExitCode.UNREACHABLE


def _run_without_rights(args: argparse.Namespace, denied: RequestError) -> int:
    from redirectctl.doctor import limited

    status = ask(args, StatusRequest(), StatusReply).status
    host = args.peer
    examined = limited.of_this_host(status) if host is None else limited.of_the_way(host, status.control_port)
    checks = asyncio.run(examined)
    show(checks, json=args.json)
    print(f"redirectctl: {clean(str(denied))}; only the checks that need no rights were made", file=sys.stderr)
    return ExitCode.FAILED if _failed(checks) else ExitCode.DENIED


def _clean(args: argparse.Namespace, unreachable: UnreachableError) -> int:
    """Exit code 1 if anything of ours is still there."""
    from redirectctl.doctor import alone, clean
    from redirectctl.doctor.outcome import fail, ok
    from redirectctl.kernel.errors import KernelError

    if os.geteuid() != 0:
        raise Failure("doctor --clean: changes the kernel's rules; run it as root", ExitCode.DENIED)
    noted = alone.noted_in(unreachable.path, args.state_dir)
    try:
        removed = asyncio.run(clean.clean(noted, force=args.force))
        left = asyncio.run(clean.present(noted))
    except clean.RefusedError as error:
        raise Failure(f"doctor --clean: {error}") from error
    except KernelError as error:
        raise Failure(f"doctor --clean: {error}") from error
    told = "\n".join(["removed:", *(trace.what for trace in removed)]) if removed else "nothing to remove"
    checks = [ok("clean", told)]
    # Cgroups are the machine's and not the namespace's: a command that another daemon knows may have ended since.
    empty = [trace for trace in left if trace.is_cgroup]
    if empty:
        checks.append(alone.cgroups(empty))
    ours = [trace for trace in left if not trace.is_cgroup]
    if ours:
        text = "\n".join(["left in place, because it may belong to another program:", *(trace.what for trace in ours)])
        by_hand = "\n".join(dict.fromkeys(trace.remove for trace in ours))
        hint = by_hand if args.force else f"`redirectctl doctor --clean --force` removes it too; by hand:\n{by_hand}"
        checks.append(fail("leftovers", text, hint))
    show(checks, json=args.json)
    return ExitCode.FAILED if _failed(checks) else ExitCode.DONE


def _failed(checks: Sequence[Check]) -> bool:
    return any(check.status is CheckStatus.FAIL for check in checks)


def show(checks: Sequence[Check], *, json: bool) -> None:
    """As an array; or a line each, what to do below it, and a count at the end."""
    if json:
        print_json(checks)
        return
    columns = min(shutil.get_terminal_size().columns, WIDTH)
    names = max((len(check.name) for check in checks), default=0)
    for check in checks:
        _show(check, names, columns)
    counts = Counter(check.status for check in checks)
    summary = ", ".join(f"{counts[status]} {_WORDS[status]}" for status in CheckStatus if counts[status])
    print(f"\n{len(checks)} checks: {summary}")


def _show(check: Check, names: int, columns: int) -> None:
    indent = " " * (6 + names + 2)
    lines = _wrapped(check.found, columns - len(indent))
    padding = " " * (6 - len(check.status))
    print(f"{paint(check.status)}{padding}{check.name:<{names}}  {lines[0]}")
    for line in lines[1:]:
        print(f"{indent}{line}")
    if check.hint and check.status is not CheckStatus.OK:
        lead = "to do: "
        for line in _wrapped(check.hint, columns - len(indent) - len(lead)):
            print(f"{indent}{lead}{line}")
            lead = " " * len(lead)


def _wrapped(text: str, width: int) -> list[str]:
    """Its lines, broken at blanks only: addresses and options stay whole.  Of several, what is broken is indented."""
    lines: list[str] = []
    rest = "  " if "\n" in text else ""
    for line in text.split("\n"):
        lines += textwrap.wrap(
            clean(line),
            max(width, MIN_WIDTH),
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return lines
