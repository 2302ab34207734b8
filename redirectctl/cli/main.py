"""redirectctl: finds the subcommand, imports only that one, and turns what went wrong into a line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol, cast

from redirectctl import __version__
from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import RequestError
from redirectctl.api.text import clean
from redirectctl.cli.common import EXIT_OF, ExitCode, Failure


class Subcommand(Protocol):
    """A module of this package."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own arguments, besides --json and --socket."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


class Entry(NamedTuple):
    """A subcommand before its module is imported."""

    help: str
    module: str
    aliases: tuple[str, ...] = ()
    passes: bool = False  # what stands behind `--` is another program's: args.rest


COMMANDS: Final = {
    "status": Entry("daemon, addresses, counts", "status"),
    "connections": Entry("connections and their states", "connections", ("conns",)),
    "peers": Entry("other hosts' daemons", "peers"),
    "identity": Entry("own fingerprint", "identity"),
    "pair": Entry("approve each other's keys, over ssh", "pair", passes=True),
    "approve": Entry("trust a peer's key", "approve"),
    "reject": Entry("never trust a peer's key", "reject"),
    "forget": Entry("forget everything about a peer", "forget"),
    "protect": Entry("opt a running process or an open connection in", "protect"),
    "release": Entry("stop protecting a connection", "release"),
    "kill": Entry("close a connection on both hosts", "kill"),
    "announce": Entry("announce this host's addresses to all peers now", "announce"),
    "retry": Entry("ask hosts that did not answer again now", "retry"),
    "events": Entry("the event log", "events"),
    "doctor": Entry("find what keeps redirectctl from working, here or on the way to a peer", "doctor"),
    "tui": Entry("the terminal UI", "tui"),
    "demo": Entry("show a real ssh session that lives through address changes, on this machine alone", "demo"),
    "bench": Entry("measure gap, throughput and start on this machine", "bench"),
    "config": Entry("check a configuration file", "config"),
    "notify": Entry("notifications in a desktop session", "notify"),
    "alias": Entry("shell functions that run commands opted in", "alias"),
    "completion": Entry("print code with which a shell completes command lines", "completion"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        what = self.prog.replace(" ", ": ")
        self.exit(ExitCode.USAGE, f"{what}: {clean(message)}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run redirectctl; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not end the program
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (Failure, RequestError, UnreachableError) as error:
        print(f"redirectctl: {clean(str(error))}", file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of Python
        return ExitCode.BROKEN_PIPE
    return code


def _run(argv: Sequence[str]) -> int:
    name = _command_in(argv)
    parser = make_parser([name] if name else [])
    rest: Sequence[str] = ()
    if name is not None and COMMANDS[name].passes and "--" in argv:
        end = list(argv).index("--")
        argv, rest = argv[:end], argv[end + 1 :]
    args = parser.parse_args(argv, argparse.Namespace(rest=list(rest)))
    if name is None:
        parser.print_help(sys.stderr)
        return ExitCode.USAGE
    return _module(name).run(args)


def _exit_code(error: Failure | RequestError | UnreachableError) -> ExitCode:
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, RequestError):
        return EXIT_OF[error.error.code]
    return ExitCode.UNREACHABLE


def _command_in(argv: Sequence[str]) -> str | None:
    """The subcommand that is meant, without parsing: its arguments are not known before its module is imported."""
    words = iter(argv)
    for word in words:
        if word == "--socket":
            next(words, None)
        elif not word.startswith("-"):
            return next((name for name, entry in COMMANDS.items() if word == name or word in entry.aliases), None)
    return None


def make_parser(selected: Collection[str]) -> argparse.ArgumentParser:
    """All subcommands by name; the arguments of those selected."""
    parser = _Parser(
        prog="redirectctl", description="Keep TCP connections alive when a host's address changes.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"redirectctl {__version__}")
    _add_common(parser, socket=None, json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, entry in COMMANDS.items():
        # What is given before the command's name is kept: without a default, the second parser sets nothing.
        command = commands.add_parser(
            name, help=entry.help, description=f"{name}: {entry.help}.", aliases=entry.aliases, allow_abbrev=False
        )
        _add_common(command, socket=argparse.SUPPRESS, json=argparse.SUPPRESS)
        if name in selected:
            _module(name).add_arguments(command)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, socket: str | None, json: bool | str) -> None:
    where = "the daemon's socket (else $REDIRECTCTL_SOCKET, else the default)"
    parser.add_argument("--socket", metavar="PATH", default=socket, help=where)
    parser.add_argument("--json", action="store_true", default=json, help="one JSON document instead of tables")


def _module(name: str) -> Subcommand:
    return cast(Subcommand, importlib.import_module(f"redirectctl.cli.{COMMANDS[name].module}"))


if __name__ == "__main__":
    sys.exit(main())
