"""redirectctl completion: what a shell needs to complete the command lines of our programs, made from their parsers."""

from __future__ import annotations

import argparse
from typing import Any, Final

from redirectctl.cli.common import ExitCode, Failure

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAMS: Final = ("redirectctl", "redirectd", "redirect-run")

# By metavar.  Words without `SHA256:`: bash takes a colon as the end of a word.
_WORDS: Final = {
    "PEER": "redirectctl peers 2>/dev/null | sed 1d | cut -c8-50",
    "CONN": "redirectctl connections 2>/dev/null | sed 1d | cut -c1-16",
}
_FILES: Final = frozenset({"FILE", "PATH"})
_DIRECTORIES: Final = frozenset({"DIR"})

# redirect-run has no argparse parser (its start would be slower); what matters is to complete the command that it runs.
_REDIRECT_RUN: Final = {
    "bash": """\
_redirect_run() {
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --notify | --socket) ((i++)) ;;
            --) ((i++)); break ;;
            -*) ;;
            *) break ;;
        esac
    done
    if ((i < COMP_CWORD)) && declare -F _command_offset >/dev/null; then
        _command_offset $i
        return
    fi
    case $3 in
        --notify) COMPREPLY=($(compgen -W "title inline none" -- "$2")) ;;
        --socket) COMPREPLY=($(compgen -f -- "$2")) ;;
        *)
            if [[ $2 == -* ]]; then
                COMPREPLY=($(compgen -W "--require --notify --socket --version --help --" -- "$2"))
            else
                COMPREPLY=($(compgen -c -- "$2"))
            fi ;;
    esac
}
complete -o bashdefault -o default -F _redirect_run redirect-run
""",
    "zsh": """\
#compdef redirect-run
_arguments -S \\
    '--require[run nothing when the connections cannot be protected]' \\
    '--notify[how to tell about a lost path]:how:(title inline none)' \\
    "--socket[the daemon's socket]:socket:_files" \\
    '(- *)--version[print the version]' \\
    '(- *)--help[print the options]' \\
    '(-):command: _command_names -e' \\
    '*::arguments: _normal'
""",
    "fish": """\
complete -c redirect-run -f -a '(__fish_complete_subcommand)'
complete -c redirect-run -l require -d 'Run nothing when the connections cannot be protected'
complete -c redirect-run -l notify -x -a 'title inline none' -d 'How to tell about a lost path'
complete -c redirect-run -l socket -r -F -d 'The socket of the daemon'
complete -c redirect-run -l version -d 'Print the version'
complete -c redirect-run -l help -d 'Print the options'
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell and program."""
    parser.add_argument("shell", choices=SHELLS, help="for this shell")
    parser.add_argument("program", choices=PROGRAMS, nargs="?", default=PROGRAMS[0], help="of this program")


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.program == "redirect-run":
        print(_REDIRECT_RUN[args.shell], end="")
        return ExitCode.DONE
    try:
        import shtab
    except ImportError:
        raise Failure("completion: the Python package shtab is not installed; pip install shtab") from None
    parser = _parser_of(args.program)
    _hint(parser, shtab)
    print(shtab.complete(parser, args.shell))
    return ExitCode.DONE


def _parser_of(program: str) -> argparse.ArgumentParser:
    if program == "redirectd":
        from redirectctl.redirectd import make_parser

        return make_parser()
    from redirectctl.cli import main

    return main.make_parser(main.COMMANDS)


def _hint(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Say what completes arguments that are not a choice."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in set(action.choices.values()):
                _hint(command, shtab)
        elif action.metavar in _WORDS:
            action.complete = shtab.cmd(_WORDS[str(action.metavar)])  # type: ignore[attr-defined]
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
