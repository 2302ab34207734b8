"""Everybody's packet filter rules, read in processes of their own.

libnftables 1.0.6 aborts the process when it lists some rules (mergesort.c), and a ruleset can have 100,000 of them: in
the daemon's own process neither may happen.  Run as a module this prints what libnftables lists.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.libnftables import Command, Nft

TIMEOUT = 15.0  # seconds for one of the processes: some 100 ms, but others may use the processors


class Saved(NamedTuple):
    """What one of the `*-save` programs printed."""

    program: str  # iptables or ip6tables, as a person would type it
    lines: list[str]


class Ruleset(NamedTuple):
    """All packet filter rules of this network namespace."""

    nft: list[Command]  # objects of libnftables-json(5)
    xtables: list[Saved]  # of iptables, both variants


async def read() -> Ruleset:
    """Ask libnftables, and iptables where it has rules.  Some 100 ms.  Raises KernelError."""
    text = await _output([sys.executable, "-I", "-m", __name__])
    listed: list[Command] = msgspec.json.decode(text)
    saved = []
    for program, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        if _has_xtables(listed, family) and (save := _which(f"{program}-nft-save", f"{program}-save")):
            saved.append(Saved(program, (await _output([save])).splitlines()))
        if _has_legacy(family) and (save := _which(f"{program}-legacy-save")):
            saved.append(Saved(f"{program}-legacy", (await _output([save])).splitlines()))
    return Ruleset(listed, saved)


def _has_xtables(listed: list[Command], family: str) -> bool:
    """Whether iptables-nft has made tables: it uses these names, and its own matches are opaque to libnftables."""
    names = {"filter", "raw", "mangle", "security", "nat"}
    tables = (item["table"] for item in listed if "table" in item)
    return any(table["family"] == family and table["name"] in names for table in tables)


def _has_legacy(family: str) -> bool:
    try:
        return bool(Path(f"/proc/thread-self/net/{family}_tables_names").read_text().strip())
    except OSError:
        return False


def _which(*names: str) -> str | None:
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


async def _output(argv: Sequence[str]) -> str:
    what = f"run {Path(argv[0]).name}" if len(argv) == 1 else "list the nftables ruleset"
    process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(TIMEOUT):
            out, errors = await process.communicate()
    except TimeoutError as error:
        raise KernelError(what, f"no answer within {TIMEOUT:g} s", "look at the rules with nft and iptables") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = errors.decode(errors="replace").split("\n")
        why = next((line.strip() for line in reversed(said) if line.strip()), f"status {process.returncode}")
        raise KernelError(what, why, "look at the rules with nft and iptables")
    return out.decode(errors="replace")


def main() -> int:
    """Print all that libnftables lists."""
    try:
        nft = Nft()
        sys.stdout.buffer.write(msgspec.json.encode(nft.run([{"list": {"ruleset": None}}])))
    except KernelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
