"""Rules that hand marked packets to NFQUEUE: nft's `queue` statement, or iptables where the kernel has none.

CONFIG_NFT_QUEUE and the NFQUEUE target of xtables are separate kernel options; distributions ship either or both.
Both see the packet at priority raw, after the chains of `rewrite` (raw - 10) have marked it.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

from redirectctl.kernel.constants import MARK_ASK, MARK_HOLD, MARK_PROBE, MARK_TOKEN, MARK_WAIT, Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.libnftables import Command, Nft, NftError

_PRIORITY_RAW = -300  # NF_IP_PRI_RAW
_TIMEOUT = 10  # seconds that iptables may wait for its lock


class QueueRule(NamedTuple):
    """Packets with ``mark`` go to NFQUEUE ``queue``; with ``bypass`` they pass when nobody listens."""

    hook: str  # prerouting | output
    mark: int  # one bit
    queue: int
    bypass: bool


QUEUE_RULES = (
    QueueRule("prerouting", MARK_HOLD, Queue.HOLD, bypass=False),
    QueueRule("prerouting", MARK_ASK, Queue.RST, bypass=True),
    QueueRule("prerouting", MARK_TOKEN, Queue.TOKEN, bypass=True),
    QueueRule("prerouting", MARK_WAIT, Queue.ANSWER, bypass=True),
    QueueRule("output", MARK_PROBE, Queue.PROBE, bypass=True),
    QueueRule("output", MARK_WAIT, Queue.WAIT, bypass=False),
)


def nft_has_queue(nft: Nft) -> bool:
    """Whether libnftables and the kernel know the `queue` statement (tried, nothing is changed)."""
    table = {"family": "inet", "table": "redirectctl-check"}
    try:
        nft.check(
            [
                {"add": {"table": {"family": "inet", "name": table["table"]}}},
                *nft_queue_commands(table),
            ]
        )
    except NftError:
        return False
    return True


def nft_queue_commands(table: dict[str, str]) -> list[Command]:
    """Chains `queue-prerouting` and `queue-output` with the rules of QUEUE_RULES, for a transaction."""
    commands: list[Command] = []
    for hook in ("prerouting", "output"):
        name = f"queue-{hook}"
        base = {"type": "filter", "hook": hook, "prio": _PRIORITY_RAW, "policy": "accept"}
        commands.append({"add": {"chain": {**table, "name": name, **base}}})
        for rule in QUEUE_RULES:
            if rule.hook == hook:
                queue = {"num": rule.queue, **({"flags": ["bypass"]} if rule.bypass else {})}
                marked = {"&": [{"meta": {"key": "mark"}}, rule.mark]}
                expr: list[Command] = [
                    {"match": {"op": "==", "left": marked, "right": rule.mark}},
                    {"queue": queue},
                ]
                commands.append({"add": {"rule": {**table, "chain": name, "expr": expr}}})
    return commands


class IptablesQueues:
    """The same rules in table raw of iptables and ip6tables.

    Each call runs up to four processes (some 10 ms each), so: at start and stop, never in a move.  Raises KernelError.
    """

    def install(self) -> None:
        """Make each rule be there exactly once, before any other."""
        for program in programs():
            wanted = [_line(rule) for rule in QUEUE_RULES]
            if self._ours(program) != wanted:
                self._delete(program)
                self._restore(program, [f"-I {line}" for line in reversed(wanted)])

    def intact(self) -> bool:
        """Whether each rule is there, once."""
        return all(self._ours(program) == [_line(r) for r in QUEUE_RULES] for program in programs())

    def remove(self) -> None:
        """Delete our rules, leave all others."""
        for program in programs():
            self._delete(program)

    def leftovers(self) -> list[str]:
        """Our rules that are there now, as `PROGRAM -t raw -A ...` lines; programs that are missing have none."""
        found = []
        for program in programs():
            try:
                found += [f"{program} -t raw -A {line}" for line in self._ours(program)]
            except KernelError:
                continue
        return found

    def _ours(self, program: str) -> list[str]:
        wanted = {_line(rule) for rule in QUEUE_RULES}
        saved = _call([f"{program}-save", "-t", "raw"], "").splitlines()
        return [line.removeprefix("-A ") for line in saved if line.startswith("-A ") and line[3:] in wanted]

    def _delete(self, program: str) -> None:
        ours = self._ours(program)
        if ours:
            self._restore(program, [f"-D {line}" for line in ours])

    @staticmethod
    def _restore(program: str, lines: list[str]) -> None:
        text = "\n".join(["*raw", *lines, "COMMIT", ""])
        _call([f"{program}-restore", "-w", str(_TIMEOUT), "--noflush"], text)


def programs() -> tuple[str, ...]:
    """Without IPv6 in the kernel ip6tables may find no table."""
    return ("iptables", "ip6tables") if os.path.exists("/proc/thread-self/net/if_inet6") else ("iptables",)


def _line(rule: QueueRule) -> str:
    """As iptables-save prints it."""
    bypass = " --queue-bypass" if rule.bypass else ""
    mark = f"{rule.mark:#x}/{rule.mark:#x}"
    return f"{rule.hook.upper()} -m mark --mark {mark} -j NFQUEUE --queue-num {rule.queue}{bypass}"


def _call(command: list[str], stdin: str) -> str:
    what = f"run {command[0]}"
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT + 5, check=False)
    except FileNotFoundError as error:
        raise KernelError(
            what, "there is no such program", "install the package iptables: this kernel has no nft queue statement"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(what, f"no answer within {error.timeout:.0f} s", "is something holding its lock?") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise KernelError(what, reason, "the kernel needs NFQUEUE: CONFIG_NFT_QUEUE or NETFILTER_XT_TARGET_NFQUEUE")
    return done.stdout
