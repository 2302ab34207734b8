"""redirectctl config check."""

from __future__ import annotations

import argparse
from pathlib import Path

from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import RequestError, StatusReply, StatusRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, Failure, ask
from redirectctl.cli.output import print_json
from redirectctl.config import DEFAULT_FILE, ConfigError, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do with which file."""
    parser.add_argument("action", choices=("check",), help="check a file; an error names line and key")
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a redirectd.toml (default: that of the daemon that runs, else /etc/redirectctl/redirectd.toml)",
    )


def run(args: argparse.Namespace) -> int:
    """Validate a configuration; needs no daemon."""
    named = args.file or _in_use(args)
    file = named or str(DEFAULT_FILE)
    try:
        config = load(Path(named) if named else None)
    except ConfigError as error:
        raise Failure(str(error)) from None
    there = named is not None or DEFAULT_FILE.exists()
    if args.json:
        print_json({"file": file, "valid": True, "config": config})
    else:
        print(f"{clean(file)}: {'valid' if there else 'there is none, so the defaults apply'}")
    return ExitCode.DONE


def _in_use(args: argparse.Namespace) -> str | None:
    """The file that the daemon was started with; None: the default one, or no daemon says."""
    try:
        status = ask(args, StatusRequest(), StatusReply).status
    except (UnreachableError, RequestError):
        return None
    return status.config if isinstance(status.config, str) else None
