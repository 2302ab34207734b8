"""redirectctl config check."""

from __future__ import annotations

import argparse
from pathlib import Path

from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, Failure
from redirectctl.cli.output import print_json
from redirectctl.config import ConfigError, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do with which file."""
    parser.add_argument("action", choices=("check",), help="check a file; an error names line and key")
    parser.add_argument("file", metavar="FILE", help="a redirectd.toml")


def run(args: argparse.Namespace) -> int:
    """Validate a configuration; needs no daemon."""
    try:
        config = load(Path(args.file))
    except ConfigError as error:
        raise Failure(str(error)) from None
    if args.json:
        print_json({"file": args.file, "valid": True, "config": config})
    else:
        print(f"{clean(args.file)}: valid")
    return ExitCode.DONE
