"""What all subcommands share: exit codes, errors, the connection to the daemon."""

from __future__ import annotations

import argparse
from enum import IntEnum
from typing import Final, TypeVar

from redirectctl.api import schema
from redirectctl.api.client import Client
from redirectctl.api.schema import ErrorCode

ReplyT = TypeVar("ReplyT", bound=schema.Reply)


class ExitCode(IntEnum):
    """Of redirectctl."""

    DONE = 0
    FAILED = 1  # the request failed
    USAGE = 2
    UNREACHABLE = 3  # the daemon cannot be reached
    DENIED = 4  # not permitted
    INTERRUPTED = 130  # Ctrl-C, as a shell says it
    BROKEN_PIPE = 141  # who read our output went away, as a shell says it


EXIT_OF: Final = {
    ErrorCode.FAILED: ExitCode.FAILED,
    ErrorCode.USAGE: ExitCode.USAGE,
    ErrorCode.DENIED: ExitCode.DENIED,
}


class Failure(Exception):
    """Ends redirectctl with a line on stderr: ``redirectctl: what: why; what to do``."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def connect(args: argparse.Namespace) -> Client:
    """The daemon that --socket or the environment names.  Raises UnreachableError, RequestError."""
    return Client(args.socket)


def ask(args: argparse.Namespace, request: schema.Request, reply: type[ReplyT]) -> ReplyT:
    """One question to the daemon.  Raises UnreachableError, RequestError."""
    with connect(args) as client:
        return client.call(request, reply)
