"""Whether sshd here ends sessions in an outage, although their connections are held."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Sequence

from redirectctl.api.schema import Check
from redirectctl.api.text import clean, duration
from redirectctl.doctor.outcome import ok, skip, warn

NAME = "programs.sshd"
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TIMEOUT = 15.0  # seconds: on a machine that has much else to do
# What a Match block of the configuration may ask for; sshd before 8.x refuses to answer without it.
_SOMEBODY = ("-C", "user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22")
_WANTS_SOMEBODY = "connection test specification"

_NO_DIRECTORY = "Missing privilege separation directory"  # systemd makes it when it starts sshd

Answer = tuple[int, str, str]  # status, stdout, stderr


async def examine() -> Check:
    """Asks sshd itself for the configuration that it would use now.  Needs root: sshd also looks at its keys."""
    program = shutil.which("sshd", path=_PATH)
    if program is None:
        return skip(NAME, "no sshd is installed")
    return await asyncio.to_thread(check, program, _ask)


def check(program: str, ask: Callable[[Sequence[str]], Answer]) -> Check:
    """``ask``: runs a command."""
    status, answer, error = ask([program, "-T"])
    if status != 0 and _WANTS_SOMEBODY in error:
        status, answer, error = ask([program, "-T", *_SOMEBODY])
    if status != 0 and error.startswith(_NO_DIRECTORY):
        return skip(NAME, "no sshd runs")
    if status != 0:
        why = next(iter(error.split("\n")), "")
        return skip(NAME, f"sshd -T: {clean(why.strip()) or f'status {status}'}")
    return judge(answer)


def judge(answer: str) -> Check:
    """``answer``: of sshd -T.  sshd ends a session only if both are set (serverloop.c, client_alive_check)."""
    values = dict(line.partition(" ")[::2] for line in answer.splitlines())
    interval, most = (values.get(key, "") for key in ("clientaliveinterval", "clientalivecountmax"))
    if not interval.isdecimal() or not most.isdecimal():
        return skip(NAME, "sshd -T does not name ClientAliveInterval and ClientAliveCountMax")
    seconds = int(interval) * int(most)
    if not seconds:
        return ok(NAME, "sshd ends no session because the other host is silent")
    found = f"sshd ends sessions after {duration(seconds)} without an answer, also in an outage:"
    set_to = f"ClientAliveInterval {int(interval)}, ClientAliveCountMax {int(most)}"
    hint = "set ClientAliveInterval 0 in /etc/ssh/sshd_config, then reload sshd; it holds for new sessions"
    return warn(NAME, f"{found}\n{set_to}", hint)


def _ask(argv: Sequence[str]) -> Answer:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
