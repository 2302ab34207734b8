"""redirectctl alias."""

from __future__ import annotations

import argparse
import os
import re
from typing import Final

from redirectctl.cli.common import ExitCode, Failure
from redirectctl.cli.output import print_json

SHELLS: Final = ("bash", "zsh", "fish")
# Functions and not aliases: what a shell knows of completing `ssh` goes on working.  `function NAME` and not `NAME ()`:
# the name may be an alias already.
_BOURNE: Final = 'unalias {name} 2>/dev/null; function {name} {{ command redirect-run {name} "$@"; }}'
_FISH: Final = "function {name} --wraps {name}; command redirect-run {name} $argv; end"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell and the commands."""
    parser.add_argument("--shell", choices=SHELLS, help="for this shell (default: that of $SHELL)")
    parser.add_argument("name", nargs="+", metavar="NAME", help="a command, as ssh")


def run(args: argparse.Namespace) -> int:
    """Print functions that run commands opted in, for a shell's start-up file."""
    shell = args.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise Failure(
            f"alias: not known for the shell {shell or 'that you use'}; name one with --shell", ExitCode.USAGE
        )
    for name in args.name:
        if not _NAME.fullmatch(name):
            raise Failure(f"alias: {name}: no name of a command; give it as it is typed", ExitCode.USAGE)
    lines = [(_FISH if shell == "fish" else _BOURNE).format(name=name) for name in args.name]
    if args.json:
        print_json({"shell": shell, "lines": lines})
    else:
        print("\n".join(lines))
    return ExitCode.DONE
