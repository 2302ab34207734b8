"""Keys of hosts in DNS: TXT records at `_redirectctl.NAME`, each with one fingerprint, believed only when validated.

    _redirectctl.server.example.net. IN TXT "v=1 SHA256:..."

Several are good while a host changes to another key.  What does not begin with `v=1` is somebody else's, or later.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from redirectctl.config import ConfigError, is_host_name, read_trusted
from redirectctl.names.words import destination, host_words
from redirectctl.proto import fingerprint
from redirectctl.wire.addr import IPAddress

if TYPE_CHECKING:
    from types import ModuleType

    from redirectctl.names.secure import Anchors, Validator

LABEL: Final = "_redirectctl"
VERSION: Final = "v=1"
LONGEST: Final = 253 - len(LABEL) - 1  # characters of a name, so that the record has one too
SYSTEM: Final = Path("/usr/share/dns/root.key")  # Debian's dns-root-data, which follows the root's changes of keys
_SECURE: Final = "redirectctl.names.secure"


class NotPublishedError(Exception):
    """No key is published under a name, or none that may be believed; ``bogus``: signatures are wrong."""

    def __init__(self, why: str, *, bogus: bool = False) -> None:
        super().__init__(why)
        self.bogus = bogus


class Published(NamedTuple):
    """What is validated of a name."""

    keys: frozenset[str]  # fingerprints
    addresses: frozenset[IPAddress]


def record(name: str, key: str) -> str:
    """The line of a zone file that publishes a fingerprint; a name with a dot in it is a whole one."""
    whole = f"{name.rstrip('.')}." if "." in name else name
    return f'{LABEL}.{whole} IN TXT "{VERSION} {key}"'


def fingerprints(texts: Iterable[bytes]) -> frozenset[str]:
    """Of the texts of TXT records, those that say one."""
    found = set()
    for text in texts:
        words = text.decode("ascii", "replace").split(" ")
        try:
            if len(words) == 2 and words[0] == VERSION and fingerprint.parse(words[1]) == words[1]:
                found.add(words[1])
        except ValueError:
            continue
    return frozenset(found)


def is_whole(name: str) -> bool:
    """Whether a name is meant as it stands: one without a dot is completed by a list that the network may give."""
    return "." in name.rstrip(".") and len(name) <= LONGEST and is_host_name(name)


def meant(argv: Sequence[str]) -> str | None:
    """The whole name of the host to which a command goes; None where it has none, or more than one may be meant."""
    called = destination(argv)
    words = [called] if called is not None else host_words(argv) if not _is_ssh(argv) else []
    whole = list(dict.fromkeys(word.rstrip(".") for word in words if is_whole(word)))
    return whole[0] if len(whole) == 1 else None


def _is_ssh(argv: Sequence[str]) -> bool:
    return bool(argv) and argv[0].rpartition("/")[2] == "ssh"


def load_anchors(file: str) -> Anchors:
    """Those of a file; "": of the root, as the system has them or as this program does.  Raises ConfigError."""
    secure = importlib.import_module(_SECURE)
    path = Path(file) if file else SYSTEM
    if not file and not path.exists():
        return secure.anchors(secure.ROOT)  # type: ignore[no-any-return]
    try:
        return secure.anchors(read_trusted(path))  # type: ignore[no-any-return]
    except ValueError as error:
        why = f"no trust anchors: {error}"
        raise ConfigError(str(path), None, "", why, "write DS or DNSKEY records, as in a zone file") from None


async def look_up(name: str, trusted: Anchors, validator: Validator | None = None) -> Published:
    """The keys and addresses of a whole name, all validated.  Raises NotPublishedError."""
    secure = await asyncio.to_thread(importlib.import_module, _SECURE)
    try:
        async with asyncio.timeout(secure.LIFETIME):
            return await _look_up(name, validator or secure.Validator(trusted), secure)
    except TimeoutError:
        raise NotPublishedError("no answer in time") from None
    except secure.NotSecureError as error:
        raise NotPublishedError(str(error), bogus=error.bogus) from error
    except OSError as error:
        raise NotPublishedError(type(error).__name__) from error


async def _look_up(name: str, validator: Validator, secure: ModuleType) -> Published:
    import dns.exception
    import dns.name
    from dns.rdatatype import AAAA, TXT, A

    try:
        whole = dns.name.from_text(name.rstrip(".") + ".")
        label = dns.name.from_text(LABEL, origin=whole)
    except dns.exception.DNSException as error:
        raise NotPublishedError(type(error).__name__) from error
    texts = await validator.records(label, TXT)
    keys = fingerprints(b"".join(text.strings) for text in texts)  # type: ignore[attr-defined]
    if not keys:
        raise NotPublishedError(f"{label}: no key")
    addresses, failed = set(), []
    for kind in (A, AAAA):
        try:
            addresses |= {ip_address(each.address) for each in await validator.records(whole, kind)}  # type: ignore[attr-defined]
        except secure.NotSecureError as error:
            failed.append(error)
    if not addresses:
        raise max(failed, key=lambda error: error.bogus)
    return Published(keys, frozenset(addresses))
