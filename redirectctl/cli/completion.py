"""redirectctl completion: what a shell needs to complete the command lines of our programs, made from their parsers."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, Final

from redirectctl.cli.common import ExitCode, Failure

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAMS: Final = ("redirectctl", "redirectd", "redirect-run")

# By metavar.  Words without `SHA256:`: bash takes a colon as the end of a word.
_WORDS: Final = {
    "PEER": "redirectctl peers --words 2>/dev/null",
    "HOST": "redirectctl peers --words 2>/dev/null",  # or any other
    "CONN": "redirectctl connections 2>/dev/null | sed 1d | cut -c1-16",
}
_FILES: Final = frozenset({"FILE", "PATH"})
_DIRECTORIES: Final = frozenset({"DIR"})

# redirect-run has no argparse parser (its start would be slower), and shtab cannot complete the command that it runs.
# So these are written here, around the options of its own table.
_BASH: Final = """\
_redirect_run() {{
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {with_value}) ((i++)) ;;
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
{values}
        *)
            if [[ $2 == -* ]]; then
                COMPREPLY=($(compgen -W "{names} --" -- "$2"))
            else
                COMPREPLY=($(compgen -c -- "$2"))
            fi ;;
    esac
}}
complete -o bashdefault -o default -F _redirect_run redirect-run
"""
_ZSH: Final = """\
#compdef redirect-run
_arguments -S \\
{options}
    '(-):command: _command_names -e' \\
    '*::arguments: _normal'
"""
_FISH: Final = """\
complete -c redirect-run -f -a '(__fish_complete_subcommand)'
{options}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell and program."""
    parser.add_argument("shell", choices=SHELLS, help="for this shell")
    parser.add_argument("program", choices=PROGRAMS, nargs="?", default=PROGRAMS[0], help="of this program")


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.program == "redirect-run":
        print(_of_redirect_run(args.shell), end="")
        return ExitCode.DONE
    try:
        import shtab
    except ImportError:
        raise Failure("completion: the Python package shtab is not installed; pip install shtab") from None
    parser = _parser_of(args.program)
    _hint(parser, shtab)
    print(shtab.complete(parser, args.shell))
    return ExitCode.DONE


def _of_redirect_run(shell: str) -> str:
    from redirectctl_wrappers.run import OPTIONS

    if shell == "bash":
        values = []
        for names, value, choices, _ in OPTIONS:
            if value:
                words = f'-W "{" ".join(choices)}"' if choices else "-f"
                values.append(f'        {" | ".join(names)}) COMPREPLY=($(compgen {words} -- "$2")) ;;')
        return _BASH.format(
            with_value=" | ".join(name for names, value, _, _ in OPTIONS if value for name in names),
            values="\n".join(values),
            names=" ".join(name for names, _, _, _ in OPTIONS for name in names),
        )
    template, line = (_ZSH, _zsh_option) if shell == "zsh" else (_FISH, _fish_option)
    return template.format(options="\n".join(line(*option) for option in OPTIONS))


def _zsh_option(names: tuple[str, ...], value: str, choices: tuple[str, ...], text: str) -> str:
    """As _arguments of zsh takes it.  After --help and --version nothing else is completed."""
    about = text.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    completed = f"({' '.join(choices)})" if choices else "_files"
    words = f":{value}:{completed}" if value else ""
    alone = "'(- *)'" if {"--help", "--version"} & set(names) else ""
    name = f"{{{','.join(names)}}}" if len(names) > 1 else names[0]
    return f"    {alone}{name}{shlex.quote(f'[{about}]{words}')} \\"


def _fish_option(names: tuple[str, ...], value: str, choices: tuple[str, ...], text: str) -> str:
    flags = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in names)
    words = f" -x -a '{' '.join(choices)}'" if choices else " -r -F" if value else ""
    return f"complete -c redirect-run {flags}{words} -d {_fish_quoted(text)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


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
