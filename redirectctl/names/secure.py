"""Records that are believed because the whole chain of their signatures is validated here (DNSSEC, RFC 4033 to 4035).

Whoever answers, such as a hotspot's resolver, says nothing that is believed: the AD bit is not looked at, and the CD
bit asks for the signatures even where somebody else finds them wrong.  The chain is followed upwards: a set of records
names the zone that has signed it, the keys of that zone are those that the DS records of the zone above name, and so on
up to a trust anchor.  Only what is there needs a proof, because what is missing changes nothing: no NSEC is read, and a
record that a wildcard made (which needs one) is not believed.

Imported when it is needed, in a thread: dnspython takes 0.2 s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import dns.asyncresolver
import dns.dnssec
import dns.exception
import dns.flags
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset
import dns.zonefile
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from dns.name import Name
from dns.node import Node
from dns.rdataset import Rdataset, from_rdata
from dns.rdatatype import CNAME, DNSKEY, DS, RRSIG, RdataType
from dns.rdtypes.ANY.DNSKEY import DNSKEY as Key
from dns.rdtypes.ANY.DS import DS as KeyDigest
from dns.rdtypes.ANY.RRSIG import RRSIG as Signature
from dns.rdtypes.dnskeybase import Flag
from dns.rrset import RRset

LIFETIME: Final = 8.0  # seconds for a name and all that its chain takes
ATTEMPT: Final = 1.0  # seconds after which the next resolver is asked
PAYLOAD: Final = 1232  # bytes of a UDP answer; longer ones come by TCP
MAX_QUESTIONS: Final = 40  # ten zones deep, with aliases
MAX_ALIASES: Final = 4
MAX_RECORDS: Final = 16  # of one name and type
MAX_SIGNATURES: Final = 4  # of one set of records
MAX_ALIKE: Final = 2  # keys of one zone with the same tag (CVE-2023-50387)
MAX_VERIFIED: Final = 40  # signatures
MAX_KEY: Final = 520  # bytes: RSA of 4096 bits

# RSA with SHA-256 and SHA-512, ECDSA, EdDSA (RFC 8624); what is signed otherwise is as good as not signed.
ALGORITHMS: Final = frozenset({8, 10, 13, 14, 15, 16})
DIGESTS: Final = {2: "SHA256", 4: "SHA384"}
# The key signing keys of the root, 20326 (2017) and 38696 (2024).
ROOT: Final = """
. IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D
. IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16
"""

Anchors = Mapping[Name, Sequence[KeyDigest]]
Ask = Callable[[Name, RdataType], Awaitable[Sequence[RRset]]]  # the records of an answer


class NotSecureError(Exception):
    """Nothing that may be believed; ``bogus``: there are signatures, and they are wrong or no end of them."""

    def __init__(self, why: str, *, bogus: bool = False) -> None:
        super().__init__(why)
        self.bogus = bogus


def anchors(text: str) -> Anchors:
    """Of a zone file with DS or DNSKEY records, as Debian's /usr/share/dns/root.key.  Raises ValueError."""
    found: dict[Name, list[KeyDigest]] = {}
    try:
        for rrset in dns.zonefile.read_rrsets(text, rdclass=None, default_ttl=0):
            for each in rrset:
                digest = dns.dnssec.make_ds(rrset.name, each, "SHA256") if isinstance(each, Key) else each
                if not isinstance(digest, KeyDigest):
                    raise ValueError(f"{rrset.name}: neither DS nor DNSKEY")
                found.setdefault(rrset.name.canonicalize(), []).append(digest)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(str(error)) from None
    if not found:
        raise ValueError("no DS or DNSKEY record")
    return found


class Validator:
    """Looks records up and validates them, within the limits above: one for each name that is looked up."""

    def __init__(self, trusted: Anchors, ask: Ask | None = None, now: Callable[[], float] = time.time) -> None:
        """``ask``: as the resolvers of this moment answer (/etc/resolv.conf), without another.  Raises OSError."""
        self._trusted = trusted
        self._ask = ask if ask is not None else asker()
        self._now = now
        self._keys: dict[Name, Sequence[Key]] = {}  # of zones, validated
        self._questions = self._verified = 0

    async def records(self, name: Name, kind: RdataType) -> list[dns.rdata.Rdata]:
        """All of them, at the end of the aliases if there are any.  Raises NotSecureError."""
        for _ in range(MAX_ALIASES + 1):
            answer = await self._answer(name, kind)
            if (found := _of(answer, name, kind)) is not None:
                await self._validate(found, _signatures(answer, found))
                return list(found)
            if (alias := _of(answer, name, CNAME)) is None:
                raise NotSecureError("no such record")
            await self._validate(alias, _signatures(answer, alias))
            name = alias[0].target
        raise NotSecureError(f"more than {MAX_ALIASES} aliases", bogus=True)

    async def _answer(self, name: Name, kind: RdataType) -> Sequence[RRset]:
        self._questions += 1
        if self._questions > MAX_QUESTIONS:
            raise NotSecureError(f"more than {MAX_QUESTIONS} questions", bogus=True)
        return await self._ask(name, kind)

    async def _validate(self, records: RRset, signatures: Sequence[Signature]) -> None:
        """One of the signatures is right.  Raises NotSecureError."""
        what = f"{records.name} {records.rdtype.name}"
        if len(records) > MAX_RECORDS:
            raise NotSecureError(f"{what}: more than {MAX_RECORDS} records", bogus=True)
        if not signatures:
            raise NotSecureError(f"{what}: not signed")
        if len(signatures) > MAX_SIGNATURES:
            raise NotSecureError(f"{what}: more than {MAX_SIGNATURES} signatures", bogus=True)
        if all(each.algorithm not in ALGORITHMS for each in signatures):
            raise NotSecureError(f"{what}: signed with an algorithm that is not known here")
        failed = NotSecureError(f"{what}: signed as another name, or by a zone that it is not in", bogus=True)
        for signature in signatures:
            if signature.algorithm not in ALGORITHMS or not _may_sign(signature, records):
                continue
            try:
                await self._verify(records, signature, await self._keys_of(signature.signer))
            except NotSecureError as error:
                failed = error
            else:
                return
        raise failed

    async def _keys_of(self, zone: Name) -> Sequence[Key]:
        """Of a zone whose names come from a signature: those that the zone above, or an anchor, vouches for."""
        zone = zone.canonicalize()
        if zone not in self._keys:
            digests = self._trusted.get(zone)
            if digests is None:
                digests = await self._digests(zone)
            answer = await self._answer(zone, DNSKEY)
            if (found := _of(answer, zone, DNSKEY)) is None or len(found) > MAX_RECORDS:
                why = "no keys" if found is None else f"more than {MAX_RECORDS} keys"
                raise NotSecureError(f"{zone}: {why}", bogus=True)
            keys = [key for key in found if isinstance(key, Key) and _is_usable(key)]
            entries = [key for key in keys if any(_matches(zone, key, each) for each in digests)]
            if not entries:
                raise NotSecureError(f"{zone}: none of its keys is the one that is vouched for", bogus=True)
            failed = NotSecureError(f"{zone}: the keys are not signed with the one that is vouched for", bogus=True)
            for signature in _signatures(answer, found)[:MAX_SIGNATURES]:
                if signature.signer.canonicalize() != zone or not _may_sign(signature, found):
                    continue
                try:
                    await self._verify(found, signature, entries)
                except NotSecureError as error:
                    failed = error
                else:
                    self._keys[zone] = keys
                    break
            else:
                raise failed
        return self._keys[zone]

    async def _digests(self, zone: Name) -> Sequence[KeyDigest]:
        """What the zone above says of this one's keys."""
        if zone == dns.name.root:
            raise NotSecureError("no trust anchor is above the name")
        answer = await self._answer(zone, DS)
        if (found := _of(answer, zone, DS)) is None:
            raise NotSecureError(f"{zone}: the zone above vouches for no key")
        await self._validate(found, _signatures(answer, found))
        digests = [each for each in found if isinstance(each, KeyDigest)]
        if not any(each.algorithm in ALGORITHMS and each.digest_type in DIGESTS for each in digests):
            raise NotSecureError(f"{zone}: signed with an algorithm that is not known here")
        return digests

    async def _verify(self, records: RRset, signature: Signature, keys: Sequence[Key]) -> None:
        fitting = [k for k in keys if (k.algorithm, dns.dnssec.key_id(k)) == (signature.algorithm, signature.key_tag)]
        why = "the key of the signature is not in the zone"
        for key in fitting[:MAX_ALIKE]:
            self._verified += 1
            if self._verified > MAX_VERIFIED:
                raise NotSecureError(f"more than {MAX_VERIFIED} signatures", bogus=True)
            only: dict[Name, Node | Rdataset] = {signature.signer: from_rdata(0, key)}
            try:  # beside everything else: a signature of RSA takes up to a millisecond
                await asyncio.to_thread(dns.dnssec.validate_rrsig, records, signature, only, None, self._now())
            except (dns.exception.DNSException, InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
                why = str(error) or type(error).__name__
            else:
                return
        raise NotSecureError(f"{records.name} {records.rdtype.name}: wrong signature: {why}", bogus=True)


def _of(answer: Sequence[RRset], name: Name, kind: RdataType) -> RRset | None:
    return next((r for r in answer if r.name == name and r.rdtype == kind and r.rdclass == dns.rdataclass.IN), None)


def _signatures(answer: Sequence[RRset], records: RRset) -> list[Signature]:
    own = [r for r in answer if r.name == records.name and r.rdtype == RRSIG and r.covers == records.rdtype]
    return [each for rrset in own for each in rrset if isinstance(each, Signature)]


def _may_sign(signature: Signature, records: RRset) -> bool:
    """The zone has this name, a DS record is of the zone above, and no wildcard made the record."""
    owner = records.name
    inside = owner.is_subdomain(signature.signer) and not (records.rdtype == DS and owner == signature.signer)
    return inside and signature.labels == len(owner.labels) - 1 and signature.type_covered == records.rdtype


def _is_usable(key: Key) -> bool:
    zone_key = key.flags & Flag.ZONE and not key.flags & Flag.REVOKE
    return bool(zone_key) and key.protocol == 3 and key.algorithm in ALGORITHMS and len(key.key) <= MAX_KEY


def _matches(zone: Name, key: Key, digest: KeyDigest) -> bool:
    tagged = (digest.algorithm, digest.key_tag) == (key.algorithm, dns.dnssec.key_id(key))
    if digest.digest_type not in DIGESTS or not tagged:
        return False
    return dns.dnssec.make_ds(zone, key, DIGESTS[digest.digest_type]).digest == digest.digest


def asker() -> Ask:
    """Who asks the resolvers of /etc/resolv.conf.  Raises NotSecureError, OSError."""
    try:
        resolver = dns.asyncresolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        raise NotSecureError("no resolver is configured") from None
    resolver.timeout, resolver.lifetime, resolver.cache = ATTEMPT, LIFETIME / 2, None
    resolver.use_edns(0, dns.flags.DO, PAYLOAD)
    resolver.flags = dns.flags.RD | dns.flags.CD

    async def ask(name: Name, kind: RdataType) -> Sequence[RRset]:
        try:
            answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            raise NotSecureError("no such name") from None
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise NotSecureError(f"{name} {kind.name}: no answer ({type(error).__name__})") from error
        return answer.response.answer

    return ask
