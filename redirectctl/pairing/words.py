"""What a person is told when two hosts could not be paired: why, and the command that mends it.

All of it is said here.  The other host only chooses from exchange.Why; nothing that it has sent is shown or run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, Protocol

from redirectctl.pairing.exchange import Why


class Trouble(Enum):
    """Why two hosts could not be paired."""

    OLDER_HERE = auto()
    NO_SSH = auto()
    SSH_ARGUMENTS = auto()
    SSH_FAILED = auto()
    NOT_INSTALLED = auto()
    OLDER_THERE = auto()
    SUDO_REFUSED = auto()
    SILENT = auto()
    NOT_UNDERSTOOD = auto()
    ENDED = auto()
    NO_DAEMON = auto()
    DENIED = auto()
    DAEMON_FAILED = auto()
    OWN_KEY = auto()
    PROOF = auto()
    OUR_PROOF = auto()
    OTHER_KEY_ANSWERS = auto()
    OTHER_KEY_KNOWN = auto()
    REJECTED_HERE = auto()
    REJECTED_THERE = auto()
    CHANGED_THERE = auto()
    NO_ADDRESS = auto()
    PROXIED = auto()
    ELSEWHERE = auto()
    CLOSED_HERE = auto()
    CLOSED_THERE = auto()
    CLOSED_BETWEEN = auto()
    CLOSED = auto()


class TroubleError(Exception):
    """Two hosts could not be paired."""

    def __init__(self, trouble: Trouble, *, said: str = "", known: str = "", user: str = "") -> None:
        """``said``: by ssh or by doctor on this host; ``known``: a fingerprint; ``user``: who ssh logs in as."""
        super().__init__(trouble.name)
        self.trouble = trouble
        self.said = said
        self.known = known
        self.user = user


class There(Protocol):
    """The other host, as the person named it."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def again(self) -> str:
        """The command line that pairs with it."""

    def over_ssh(self, *command: str) -> str:
        """A command line that runs a command there."""


_SORRY: Final = {
    Why.NO_DAEMON: Trouble.NO_DAEMON,
    Why.DENIED: Trouble.DENIED,
    Why.VERSION: Trouble.NOT_UNDERSTOOD,
    Why.OWN_KEY: Trouble.OWN_KEY,
    Why.PROOF: Trouble.OUR_PROOF,
    Why.REJECTED: Trouble.REJECTED_THERE,
    Why.CHANGED: Trouble.CHANGED_THERE,
    Why.UNMET: Trouble.CLOSED,
    Why.FAILED: Trouble.DAEMON_FAILED,
}


def sorry(why: Why, user: str) -> TroubleError:
    """What it means here that the other host does not go on."""
    return TroubleError(_SORRY[why], user=user)


def explain(error: TroubleError, there: There, own: str, port: int) -> tuple[str, str]:
    """Why, and what to do; ``own``: this host's fingerprint; ``port``: the control port."""
    host, again = there.name, there.again
    match error.trouble:
        case Trouble.OLDER_HERE:
            return "the redirectd that runs here is older than this program", "`sudo systemctl restart redirectd`"
        case Trouble.NO_SSH:
            return "there is no ssh on this host", "`sudo apt-get install openssh-client`"
        case Trouble.SSH_ARGUMENTS:
            return "ssh does not take these arguments", f"see which it takes: `{there.over_ssh()}`"
        case Trouble.SSH_FAILED:
            said = f'ssh could not log in: "{error.said}"' if error.said else "ssh could not log in"
            return said, f"pair again when this works: `{there.over_ssh('true')}`"
        case Trouble.NOT_INSTALLED:
            return (
                f"{host} has no redirectctl that commands over ssh find",
                f"install it there (in a clone of redirectctl: `sudo make install`), then pair again: `{again}`",
            )
        case Trouble.OLDER_THERE:
            return (
                f"redirectctl on {host} ended without an answer: it may be older than this one",
                f"install the same version there, then pair again: `{again}`",
            )
        case Trouble.SUDO_REFUSED:
            return (
                f"sudo on {host} asks for a password, or does not allow redirectctl",
                f"join the group there, and pair without --sudo: `{_join_group(there, error)}`",
            )
        case Trouble.SILENT:
            return f"{host} did not answer in time", f"try once more: `{again}`"
        case Trouble.NOT_UNDERSTOOD:
            return (
                f"what {host} answered is not understood",
                f"install the same version on both hosts, then pair again: `{again}`",
            )
        case Trouble.ENDED:
            return f"the connection to {host} ended before both had approved", f"try once more: `{again}`"
        case Trouble.NO_DAEMON:
            start = there.over_ssh("sudo", "systemctl", "enable", "--now", "redirectd")
            return f"redirectd does not run on {host}", f"start it: `{start}`; then pair again: `{again}`"
        case Trouble.DENIED:
            user = f"user {error.user}" if error.user else "the user"
            return (
                f"{user} may not approve keys on {host}",
                f"let sudo do it: `{_with_sudo(again)}`; or join the group there: `{_join_group(there, error)}`",
            )
        case Trouble.DAEMON_FAILED:
            return (
                f"redirectd on {host} failed",
                f"see its log: `{there.over_ssh('sudo', 'journalctl', '-u', 'redirectd')}`",
            )
        case Trouble.OWN_KEY:
            return (
                f"{host} has this host's own key: it is this host, or a copy of it",
                "on a copy, remove /var/lib/redirectctl while redirectd is stopped: it then makes a key of its own",
            )
        case Trouble.PROOF:
            return (
                f"{host} named a key and did not prove that it is its own: nothing was approved",
                "find out who runs that host before you pair again",
            )
        case Trouble.OUR_PROOF:
            return f"{host} did not accept the proof of this host's key", f"try once more: `{again}`"
        case Trouble.OTHER_KEY_ANSWERS:
            return (
                f"another host's key answers at the address of {host}: nothing was approved",
                f"is UDP {port} of that address forwarded to another host?",
            )
        case Trouble.OTHER_KEY_KNOWN:
            return (
                f"another key is known for {host}: {error.known}",
                f"if {host} was set up anew: `redirectctl forget {error.known}`; then pair again: `{again}`",
            )
        case Trouble.REJECTED_HERE:
            return (
                f"the key of {host} was rejected on this host",
                f"if that was a mistake: `redirectctl approve {error.known}`",
            )
        case Trouble.REJECTED_THERE:
            return (
                f"this host's key was rejected on {host}",
                f"if that was a mistake: `{there.over_ssh('sudo', 'redirectctl', 'approve', own)}`",
            )
        case Trouble.CHANGED_THERE:
            return (
                f"{host} knows another key for this host",
                f"if this host was set up anew, find that key: `{there.over_ssh('sudo', 'redirectctl', 'peers')}`;"
                f" and have it forgotten: `{there.over_ssh('sudo', 'redirectctl', 'forget', 'KEY')}`",
            )
        case Trouble.NO_ADDRESS:
            return f"the name {host} leads to no address here", "name it by an address, or correct its name in DNS"
        case Trouble.PROXIED:
            return (
                f"ssh reaches {host} by way of another host, and its daemon does not answer this one",
                "pair with the host in between: the connection that starts here ends there",
            )
        case Trouble.ELSEWHERE:
            return (
                f"the key that {host} has called from an address that is not one of {host}: nothing was approved",
                f"let UDP {port} in on {host}, so that this host can call it; then pair again: `{again}`",
            )
        case Trouble.CLOSED_HERE:
            return (
                f"the packet filter of this host does not let UDP {port} in",
                "see which rule and what to do: `redirectctl doctor`",
            )
        case Trouble.CLOSED_THERE:
            return (
                f"the packet filter of {host} does not let UDP {port} in",
                f"see which rule and what to do: `{there.over_ssh('sudo', 'redirectctl', 'doctor')}`",
            )
        case Trouble.CLOSED_BETWEEN:
            return (
                f"UDP {port} gets neither to {host} nor back, and the packet filters of both hosts let it in",
                f"let UDP {port} in at the firewall between them (a cloud's security group, a router);"
                f" then pair again: `{again}`",
            )
        case Trouble.CLOSED:
            found = f" ({error.said})" if error.said else ""
            return (
                f"UDP {port} of {host} does not answer, and its daemon does not reach this host{found}",
                f"let UDP {port} in on {host} and in any firewall before it (cloud, router);"
                f" then pair again: `{again}`",
            )


def _join_group(there: There, error: TroubleError) -> str:
    return there.over_ssh("sudo", "usermod", "-aG", "redirectctl", error.user or "USER")


def _with_sudo(again: str) -> str:
    words: Sequence[str] = shlex.split(again)
    return shlex.join([*words[:2], "--sudo", *words[2:]])
