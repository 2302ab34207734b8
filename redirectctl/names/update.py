"""Our own name: RFC 2136 updates with TSIG (RFC 8945), over TCP (RFC 7766), each a replacement of all A and AAAA."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from redirectctl.names import resolver
from redirectctl.names.resolver import NoAnswerError
from redirectctl.names.tsigkey import TsigKey
from redirectctl.wire.addr import IPAddress, is_routable

if TYPE_CHECKING:
    import dns.message

TIMEOUT: Final = 5.0  # seconds for one update
MAX_PUBLISHED: Final = 8  # addresses of each family
# RFC 1918, RFC 6598, RFC 4193; documentation prefixes count as global, unlike in `ipaddress`: laboratories use them.
PRIVATE: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
PRIVATE_6: Final = IPv6Network("fc00::/7")


class UpdateError(Exception):
    """The name was not updated, or could not be read, for a named reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class OwnName(NamedTuple):
    """What to keep up to date, and where."""

    name: str
    zone: str
    host: str  # of the primary server: an address or a name
    port: int
    ttl: int  # seconds


def publishable(addresses: Collection[IPAddress], *, private: bool) -> frozenset[IPAddress]:
    """Those of this host's addresses by which others reach it."""
    wanted = sorted((a for a in addresses if is_routable(a) and (private or not is_private(a))), key=int)
    return frozenset(a for version in (4, 6) for a in [b for b in wanted if b.version == version][:MAX_PUBLISHED])


def is_private(address: IPAddress) -> bool:
    """Of a network that is not connected with others."""
    if isinstance(address, IPv4Address):
        return any(address in network for network in PRIVATE)
    return address in PRIVATE_6


async def publish(own: OwnName, addresses: Collection[IPAddress], key: TsigKey) -> None:
    """Make the name lead to these addresses and no others.  Raises UpdateError."""
    await resolver.prepare()
    import dns.name
    import dns.tsig
    import dns.update

    signing = dns.tsig.Key(dns.name.from_text(key.name), key.secret, dns.name.from_text(key.algorithm))
    update = dns.update.UpdateMessage(dns.name.from_text(own.zone), keyring=signing)
    name = dns.name.from_text(own.name)
    for kind, version in (("A", 4), ("AAAA", 6)):
        texts = sorted(str(a) for a in addresses if a.version == version)
        if texts:
            update.replace(name, own.ttl, kind, *texts)
        else:
            update.delete(name, kind)
    _check(await _exchange(own, update))


async def published(own: OwnName) -> frozenset[IPAddress]:
    """What the zone's primary server has.  Raises UpdateError."""
    await resolver.prepare()
    import dns.flags
    import dns.message
    import dns.name
    import dns.rcode

    found: set[IPAddress] = set()
    for kind in ("A", "AAAA"):
        query = dns.message.make_query(dns.name.from_text(own.name), kind)
        query.flags &= ~dns.flags.RD
        answer = await _exchange(own, query)
        if answer.rcode() is not dns.rcode.NXDOMAIN:
            _check(answer)
        found.update(ip_address(record.address) for records in answer.answer for record in records
                     if record.rdtype.name == kind)  # fmt: skip
    return frozenset(found)


def _check(answer: dns.message.Message) -> None:
    import dns.rcode

    if answer.rcode() is not dns.rcode.NOERROR:
        raise UpdateError("refused-by-server", dns.rcode.to_text(answer.rcode()))


async def _exchange(own: OwnName, message: dns.message.Message) -> dns.message.Message:
    """Ask the server.  Raises UpdateError."""
    import dns.asyncquery
    import dns.exception
    import dns.tsig

    failure: Exception | None = None
    for where in await _server(own):
        try:
            return await dns.asyncquery.tcp(message, where, TIMEOUT, own.port)
        except (dns.exception.Timeout, OSError, EOFError) as error:
            failure = error
        except (dns.tsig.PeerBadTime, dns.tsig.BadTime) as error:
            raise UpdateError("clocks-differ", str(error)) from error
        except (dns.tsig.PeerError, dns.tsig.BadSignature, dns.tsig.BadKey) as error:
            raise UpdateError("key-refused", str(error) or type(error).__name__) from error
        except (dns.exception.DNSException, ValueError) as error:
            raise UpdateError("bad-answer-from-server", str(error) or type(error).__name__) from error
    raise UpdateError("no-answer-from-server", str(failure) or type(failure).__name__) from failure


async def _server(own: OwnName) -> list[str]:
    """Its addresses."""
    try:
        return [str(ip_address(own.host))]
    except ValueError:
        pass
    try:
        return list(map(str, (await resolver.look_up(own.host)).addresses))
    except NoAnswerError as error:
        raise UpdateError("no-answer-from-server", f"{own.host}: {error}") from error
