"""redirectd.toml: reading, checking, defaults.

Every error is one line, ``FILE:LINE: key: why; what to do``.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NewType

import msgspec

DEFAULT_FILE: Final = Path("/etc/redirectctl/redirectd.toml")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Address = NewType("Address", str)  # an IPv4 or IPv6 address as text
MegabitsPerSecond = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
AddressRange = NewType("AddressRange", str)  # a network as text, "192.0.2.0/24", or an address
Interfaces = NewType("Interfaces", str)  # an interface's name, in which * stands for anything
HostPort = NewType("HostPort", str)  # "host:port", "[v6]:port"
FilePath = NewType("FilePath", str)  # a whole path, from the root
HostName = NewType("HostName", str)  # a DNS name as text, or empty
Duration = NewType("Duration", float)  # seconds; in the file a number and a unit, "10s"

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")
_DAY: Final = 86400.0
_INTERFACES: Final = re.compile(r"[^\s/:]{1,31}")  # dev_valid_name(), with room for some *
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


class ConfigError(Exception):
    """What is wrong, where, and what to do, in one line."""

    def __init__(self, file: str, line: int | None, key: str, why: str, hint: str) -> None:
        key = key if key.isprintable() else repr(key)
        super().__init__(": ".join(part for part in (file if line is None else f"{file}:{line}", key, why) if part))
        self.args = (f"{self.args[0]}; {hint}",)
        self.file = file
        self.line = line
        self.key = key


class Control(msgspec.Struct, frozen=True):
    """The UDP socket on which daemons talk to each other."""

    port: Port = 7747
    listen: tuple[Address, ...] = ()  # empty: all


class Trust(msgspec.Struct, frozen=True):
    """What to do with keys that are not known yet, or no longer met."""

    first_contact: Literal["ask", "accept-new", "refuse"] = "ask"
    forget_after: Duration = Duration(365 * _DAY)
    known_peers: tuple[FilePath, ...] = ()  # whose keys are approved without a person (known_peers.py)
    dns: bool = False  # approve keys that DNS has for the names of commands, validated here (names/published.py)
    anchors: FilePath = FilePath("")  # trust anchors of DNSSEC in place of the root's
    own_name: str = ""  # what peers are told that this host is called; empty: its host name, "-": nothing


class Protect(msgspec.Struct, frozen=True):
    """Which connections are protected, and when."""

    scope: Literal["opted-in", "all"] = "opted-in"
    ports: tuple[Port, ...] = ()  # remote ports that are always opted in
    long_lived_after: Duration = Duration(10.0)  # may be 0
    close_short_lived: bool = True  # at an address change
    accept_ports: tuple[Port, ...] = ()  # local ports that peers may ask to protect; empty: all


class Integrity(msgspec.Struct, frozen=True):
    """Authentication of each packet."""

    mode: Literal["off", "on"] = "off"


class PathChoice(msgspec.Struct, frozen=True):
    """How packets travel after a move, and where they may go."""

    prefer: Literal["auto", "rewritten", "tunnel"] = "auto"
    leave_vpn: bool = False  # what began over a VPN, in a VRF or bound to an interface
    last: tuple[Interfaces, ...] = ()  # only if no other carries
    never: tuple[Interfaces, ...] = ()
    accept_from: tuple[AddressRange, ...] = ()  # where peers may move their connections from; empty: anywhere


class Outage(msgspec.Struct, frozen=True):
    """What to do while there is no path."""

    suspend_after: Duration = Duration(10.0)  # of silence
    give_up_after: Duration = Duration(14 * _DAY)


class Rendezvous(msgspec.Struct, frozen=True):
    """Hosts that help two others to find each other."""

    servers: tuple[HostPort, ...] = ()
    serve: bool = False
    relay_limit: MegabitsPerSecond = 100  # for each host, while we serve


class Dns(msgspec.Struct, frozen=True):
    """Names of peers, where they may be found again; our own, kept up to date (RFC 2136)."""

    lookup: bool = True  # also learn the names that commands used
    names: dict[str, HostName] = {}  # by peer: fingerprint, unique prefix of it, or name
    name: HostName = HostName("")  # ours; empty: somebody else keeps it, or there is none
    zone: HostName = HostName("")
    server: HostPort = HostPort("")
    key_file: str = ""  # as tsig-keygen(8) writes it
    ttl: Duration = Duration(30.0)
    private: bool = False  # publish addresses of private networks too


class Desktop(msgspec.Struct, frozen=True):
    """What people in desktop sessions of this machine are told by `redirectctl notify`."""

    notices: bool = True


class Config(msgspec.Struct, frozen=True):
    """The whole file; each section has its defaults."""

    control: Control = Control()
    trust: Trust = Trust()
    protect: Protect = Protect()
    integrity: Integrity = Integrity()
    path: PathChoice = PathChoice()
    outage: Outage = Outage()
    rendezvous: Rendezvous = Rendezvous()
    dns: Dns = Dns()
    desktop: Desktop = Desktop()


_MAY_BE_ZERO: Final = frozenset({("protect", "long_lived_after")})


def load(path: Path | None) -> Config:
    """Read a named file, or with None the default file, whose absence means defaults.  Raises ConfigError."""
    file = DEFAULT_FILE if path is None else path
    if path is None and not file.exists():
        return Config()
    return parse(read_trusted(file), str(file))


def read_trusted(file: Path) -> str:
    """A file that nobody but root and we can change.  Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            _check_owner(os.fstat(opened.fileno()), file)
            content = opened.read()
    except FileNotFoundError:
        raise ConfigError(str(file), None, "", "no such file", "create it or name another file") from None
    except OSError as error:
        raise ConfigError(str(file), None, "", error.strerror or str(error), "make it readable") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(file), line, "", "not UTF-8 text", "save it as UTF-8") from None


def _check_owner(status: os.stat_result, file: Path) -> None:
    """As ssh does it: who can write it can do all that the daemon can.  Pipes have no owner worth asking for.

    Raises ConfigError.
    """
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(str(file), None, "", f"user {status.st_uid} owns it, and can change it", f"chown root {file}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(str(file), None, "", "others can change it", f"chmod go-w {file}")


def parse(text: str, file: str = "redirectd.toml") -> Config:
    """Check the text of a configuration; `file` is for messages.  Raises ConfigError about the first wrong line."""
    try:
        document = tomllib.loads(text)
        return _Reader(text, file).read(document)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(text, file, str(error)) from None
    except RecursionError:
        lines = text.split("\n")
        deepest = max(range(len(lines)), key=lambda number: sum(map(lines[number].count, "[{.")))
        why = "lists or tables are nested too deeply"
        raise ConfigError(file, deepest + 1, "", why, "correct the line") from None
    except ValueError:  # Python reads no number of more than some thousand digits
        lines = text.split("\n")
        longest = max(range(len(lines)), key=lambda number: len(lines[number]))
        raise ConfigError(file, longest + 1, "", "a number is too long", "correct the line") from None


_KEYS: Final = {
    section.name: frozenset(field.name for field in msgspec.structs.fields(section.type))
    for section in msgspec.structs.fields(Config)
}


def _instead(name: str, known: Iterable[str], every: str) -> str:
    """What to write: what somebody may have meant, or what there is."""
    meant = difflib.get_close_matches(name, known, 1)
    return f"did you mean {meant[0]}? {every}" if meant else every


class _Reader:
    """Checks a parsed document, and collects what is wrong with it."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._errors: list[ConfigError] = []

    def read(self, document: dict[str, Any]) -> Config:
        sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
        values = {}
        for name, content in document.items():
            if name not in sections:
                self._wrong(
                    name, None, "unknown section", _instead(name, sections, f"sections are {', '.join(sections)}")
                )
            elif not isinstance(content, dict):
                self._wrong(name, None, "is a section, not a key", f"write [{name}] on a line")
            else:
                values[name] = self._section(sections[name], name, content)
        if self._errors:
            raise min(self._errors, key=lambda error: error.line or 0)
        config = Config(**values)
        self._own_name(config.dns)
        if self._errors:
            raise self._errors[0]
        return config

    def _own_name(self, dns: Dns) -> None:
        """What is needed to keep a name up to date is given as a whole."""
        missing = [key for key in ("zone", "server", "key_file") if not getattr(dns, key)]
        if dns.name and missing:
            self._wrong("dns", "name", f"cannot be kept up to date without dns.{missing[0]}", f"write {missing[0]} too")
        elif dns.name and not f".{dns.name.rstrip('.')}".lower().endswith(f".{dns.zone.rstrip('.')}".lower()):
            self._wrong("dns", "name", f"{_toml(dns.name)} is not in zone {_toml(dns.zone)}", "write the whole name")

    def _section(self, kind: type[msgspec.Struct], section: str, content: dict[str, Any]) -> Any:
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values = {}
        for key, raw in content.items():
            if key not in fields:
                every = f"keys of [{section}] are {', '.join(fields)}"
                elsewhere = [name for name, kind in _KEYS.items() if key in kind]
                meant = f"it belongs in [{elsewhere[0]}]" if elsewhere else _instead(key, fields, every)
                self._wrong(section, key, "unknown key", meant)
                continue
            try:
                value = _value(fields[key].type, raw, zero=(section, key) in _MAY_BE_ZERO)
            except ValueError as error:
                self._wrong(section, key, *error.args)
                continue
            values[key] = value
        return kind(**values)

    def _wrong(self, section: str, key: str | None, why: str, hint: str) -> None:
        name = section if key is None else f"{section}.{key}"
        self._errors.append(ConfigError(self._file, _line_of(self._text, section, key), name, why, hint))


def _value(kind: Any, raw: Any, *, zero: bool) -> Any:
    """Convert what TOML gave.  Raises ValueError(why, what to do)."""
    if kind is Duration:
        return _duration(raw, zero=zero)
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError:
        raise ValueError(f"{_toml(raw)} is not a valid value", f"write {_expected(kind)}") from None
    for item in value if isinstance(value, tuple) else ():
        if kind == tuple[Address, ...]:
            _check_address(item)
        elif kind == tuple[HostPort, ...]:
            _check_host_port(item)
        elif kind == tuple[FilePath, ...] and not os.path.isabs(item):
            raise ValueError(f"{_toml(item)} is no whole path", 'write files as in "/etc/redirectctl/known_peers"')
        elif kind == tuple[AddressRange, ...]:
            _check_network(item)
        elif kind == tuple[Interfaces, ...]:
            _check_interfaces(item)
    if kind is FilePath and value and not os.path.isabs(value):
        raise ValueError(f"{_toml(value)} is no whole path", 'write a file as in "/etc/redirectctl/anchors"')
    if kind is HostPort and value:
        _check_host_port(value)
    for name in value.values() if isinstance(value, dict) else [value] if kind is HostName and value else []:
        if not is_host_name(name):
            raise ValueError(f"{_toml(name)} is not a name", 'write names as in "host.example.net"')
    return value


def is_host_name(text: str) -> bool:
    """Whether DNS can have such a name; addresses are none."""
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def parse_duration(text: str) -> float:
    """Seconds of "500ms", "10s", "3m", "2h", "365d", "2w".  Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration")
    return float(match[1]) * _UNITS[match[2]]


def _duration(raw: Any, *, zero: bool) -> float:
    try:
        seconds = parse_duration(raw)
    except (TypeError, ValueError):
        hint = 'write a number and ms, s, m, h, d or w, as in "10s"'
        raise ValueError(f"{_toml(raw)} is not a duration", hint) from None
    if seconds == 0 and not zero:
        raise ValueError("must be longer than 0", "write a longer time")
    return seconds


def _check_address(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise ValueError(f"{_toml(text)} is not an address", 'write addresses as in "192.0.2.1"') from None


def _check_network(text: str) -> None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{_toml(text)} is not a network", 'write networks as in "192.0.2.0/24"') from None
    try:
        ip_network(text)
    except ValueError:
        why = f"{_toml(text)} has bits set beyond its prefix length"
        raise ValueError(why, f'write "{network}"') from None


def _check_interfaces(text: str) -> None:
    if not _INTERFACES.fullmatch(text):
        hint = 'write interfaces as in "wwan0" or "wwan*"'
        raise ValueError(f"{_toml(text)} is not the name of an interface", hint)


def _check_host_port(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"{_toml(text)} is not HOST:PORT", 'write servers as in "rendezvous.example.net:7747"')


_EXPECTED: Final[tuple[tuple[Any, str], ...]] = (
    (Port, "a number from 1 to 65535"),
    (MegabitsPerSecond, "a number of Mbit/s from 1 to 1000000"),
    (bool, "true or false"),
    (tuple[Port, ...], "a list of numbers from 1 to 65535, as in [22, 5432]"),
    (tuple[FilePath, ...], 'a list of files, as in ["/etc/redirectctl/known_peers"]'),
    (tuple[Address, ...], 'a list of addresses, as in ["192.0.2.1"]'),
    (tuple[AddressRange, ...], 'a list of networks, as in ["192.0.2.0/24"]'),
    (tuple[Interfaces, ...], 'a list of interfaces, as in ["wwan*"]'),
    (str, "text"),
    (FilePath, 'a file, as in "/etc/redirectctl/anchors"'),
    (HostName, 'a name, as in "host.example.net"'),
    (HostPort, 'a server, as in "ns.example.net:53"'),
    (dict[str, HostName], 'names by peer, as in { "SHA256:kmCtQ" = "host.example.net" }'),
    (tuple[HostPort, ...], 'a list of servers, as in ["rendezvous.example.net:7747"]'),
)


def _expected(kind: Any) -> str:
    for candidate, text in _EXPECTED:
        if kind == candidate:
            return text
    return " or ".join(f'"{choice}"' for choice in kind.__args__)  # a Literal


def _toml(raw: Any) -> str:
    """A value as it is written in the file, shortened for a message of one line."""
    try:
        text = str(raw).lower() if isinstance(raw, bool) else repr(raw)
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        text = "this"
    return text if len(text) <= 60 else text[:57] + "..."


def _syntax_error(text: str, file: str, message: str) -> ConfigError:
    position = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = int(position[1]) if position and position[1] else text.count("\n") + 1
    why = message[: position.start()] if position else message
    return ConfigError(file, line, "", f"not TOML: {why[:1].lower()}{why[1:]}", "correct the line")


_HEADER: Final = re.compile(r"\s*\[+\s*(?P<name>[^\]#]*?)\s*\]")
_KEY: Final = re.compile(r"\s*(?P<name>[A-Za-z0-9_\-\"'.\s]+?)\s*=")


def _line_of(text: str, section: str, key: str | None) -> int:
    """Where a key of a section, or the section, is written: tomllib does not say.  Lines count from 1.

    Knows ``[section]`` followed by ``key =``, and ``section.key =``; of an inline table, the line of the section.
    """
    current: list[str] = []
    of_section = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            current = _parts(header["name"])
            path = current
        elif assignment := _KEY.match(line):
            path = current + _parts(assignment["name"])
        else:
            continue
        if path[:1] == [section]:
            of_section = of_section or number
            if key is None or path[1:2] == [key]:
                return number
    return of_section or 1


def _parts(name: str) -> list[str]:
    return [part.strip().strip("\"'") for part in name.split(".")]
