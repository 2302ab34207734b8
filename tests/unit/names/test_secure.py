"""What is believed of DNS: only what a chain of right signatures leads to, whoever answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.rdataset
import dns.rrset
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from dns.name import Name, from_text
from dns.rdatatype import CNAME, DNSKEY, DS, TXT, A, RdataType
from dns.rdtypes.ANY.DNSKEY import DNSKEY as Key
from dns.rdtypes.ANY.RRSIG import RRSIG as Signature
from dns.rrset import RRset

from redirectctl.config import ConfigError
from redirectctl.names import published, secure
from redirectctl.names.published import NotPublishedError, Published
from redirectctl.names.secure import NotSecureError, Validator
from redirectctl.proto.fingerprint import fingerprint

ONE, TWO = fingerprint(b"\x01" * 32), fingerprint(b"\x02" * 32)
HOST, PLACE = "server.example.net", "192.0.2.7"
NOW = time.time()
DAY = 86400


class Zone:
    """A zone and its key, signed as it is asked."""

    def __init__(self, name: str) -> None:
        self.name = from_text(name)
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.key: Key = dns.dnssec.make_dnskey(self.private.public_key(), 13, flags=257)  # type: ignore[assignment]
        self.alike: list[Key] = []
        self.records: dict[tuple[Name, RdataType], RRset] = {}
        self.ends = NOW + DAY
        self.signed = True

    def put(self, name: str, kind: str, *texts: str) -> None:
        rrset = dns.rrset.from_text(name, 5, "IN", kind, *texts)
        self.records[rrset.name, rrset.rdtype] = rrset

    def keys(self) -> RRset:
        return dns.rrset.from_rdata_list(self.name, 5, [self.key, *self.alike])

    def signature(self, rrset: RRset, signer: Name | None = None) -> RRset:
        made = dns.dnssec.sign(
            rrset, self.private, signer or self.name, self.key, inception=NOW - DAY, expiration=self.ends
        )
        return dns.rrset.from_rdata(rrset.name, 5, made)

    def digest(self) -> str:
        return dns.dnssec.make_ds(self.name, self.key, "SHA256").to_text()


class Internet:
    """The root, net, and example.net; who answers may change what is said."""

    def __init__(self) -> None:
        self.root, self.net, self.zone = Zone("."), Zone("net."), Zone("example.net.")
        self.zones = [self.zone, self.net, self.root]
        self.root.put("net.", "DS", self.net.digest())
        self.net.put("example.net.", "DS", self.zone.digest())
        self.zone.put(f"{HOST}.", "A", PLACE)
        self.zone.put(f"_redirectctl.{HOST}.", "TXT", f'"v=1 {ONE}"')
        self.asked = 0
        self.changed: dict[tuple[Name, RdataType], Callable[[list[RRset]], list[RRset]]] = {}

    async def ask(self, name: Name, kind: RdataType) -> Sequence[RRset]:
        self.asked += 1
        above = kind == DS and name != dns.name.root
        where = name.parent() if above else name
        zone = next(each for each in self.zones if where.is_subdomain(each.name))
        found = zone.keys() if kind == DNSKEY else zone.records.get((name, kind)) or zone.records.get((name, CNAME))
        answer = [] if found is None else [found, *([zone.signature(found)] if zone.signed else [])]
        return self.changed.get((name, kind), lambda records: records)(answer)

    def anchors(self) -> secure.Anchors:
        return secure.anchors(f". IN DS {self.root.digest()}\n")

    def validator(self) -> Validator:
        return Validator(self.anchors(), self.ask, lambda: NOW)

    def look_up(self, name: str = HOST) -> Published:
        return asyncio.run(published.look_up(name, {}, self.validator()))

    def refused(self, name: str = HOST, *, bogus: bool) -> str:
        with pytest.raises(NotPublishedError) as caught:
            self.look_up(name)
        assert caught.value.bogus is bogus, caught.value
        return str(caught.value)

    def change(self, name: str, kind: RdataType, how: Callable[[list[RRset]], list[RRset]]) -> None:
        self.changed[from_text(name), kind] = how


@pytest.fixture
def internet() -> Internet:
    return Internet()


RECORD = f"_redirectctl.{HOST}."


def test_a_whole_chain(internet: Internet) -> None:
    assert internet.look_up() == Published(frozenset({ONE}), frozenset({ip_address(PLACE)}))


def test_two_keys_and_both_families(internet: Internet) -> None:
    internet.zone.put(RECORD, "TXT", f'"v=1 {ONE}"', f'"v=1 {TWO}"', '"v=spf1 -all"', '"v=1 SHA256:short"')
    internet.zone.put(f"{HOST}.", "AAAA", "2001:db8::7")
    found = internet.look_up()
    assert found.keys == {ONE, TWO}
    assert found.addresses == {ip_address(PLACE), ip_address("2001:db8::7")}


def test_expired_and_not_yet_valid(internet: Internet) -> None:
    internet.zone.ends = NOW - 1
    assert "expired" in internet.refused(bogus=True)
    internet.zone.ends = NOW + DAY
    early = Validator(internet.anchors(), internet.ask, lambda: NOW - 2 * DAY)
    with pytest.raises(NotSecureError, match="not yet"):
        asyncio.run(early.records(from_text(RECORD), TXT))


def test_a_record_that_another_key_has_signed(internet: Internet) -> None:
    mallory = Zone("example.net.")
    mallory.put(RECORD, "TXT", f'"v=1 {TWO}"')
    forged = mallory.records[from_text(RECORD), TXT]
    internet.change(RECORD, TXT, lambda _: [forged, mallory.signature(forged)])
    internet.refused(bogus=True)
    internet.change("example.net.", DNSKEY, lambda _: [mallory.keys(), mallory.signature(mallory.keys())])
    assert "vouched for" in internet.refused(bogus=True)


def test_a_forged_key_beside_the_right_one(internet: Internet) -> None:
    """The set of keys is signed as a whole, with the key that the zone above vouches for."""
    mallory = Zone("example.net.")
    forged = dns.rrset.from_text(RECORD, 5, "IN", "TXT", f'"v=1 {TWO}"')
    internet.change(RECORD, TXT, lambda _: [forged, mallory.signature(forged)])
    both = dns.rrset.from_rdata_list(internet.zone.name, 5, [internet.zone.key, mallory.key])
    internet.change("example.net.", DNSKEY, lambda answer: [both, answer[1]])
    assert "DNSKEY: wrong signature" in internet.refused(bogus=True)
    internet.change("example.net.", DNSKEY, lambda _: [both, mallory.signature(both)])
    assert "DNSKEY: wrong signature" in internet.refused(bogus=True)


def test_a_key_that_has_only_the_tag_of_the_one_that_is_vouched_for(internet: Internet) -> None:
    internet.net.put("example.net.", "DS", f"{dns.dnssec.key_id(internet.zone.key)} 13 2 {'00' * 32}")
    assert "vouched for" in internet.refused(bogus=True)


@pytest.mark.parametrize("kind", [TXT, A])
def test_a_record_that_was_altered(internet: Internet, kind: RdataType) -> None:
    name, text = (RECORD, f'"v=1 {TWO}"') if kind == TXT else (f"{HOST}.", "203.0.113.66")
    forged = dns.rrset.from_text(name, 5, "IN", kind, text)
    internet.change(name, kind, lambda answer: [forged, answer[1]])
    assert "wrong signature" in internet.refused(bogus=True)


def test_a_zone_that_is_signed_and_has_no_ds(internet: Internet) -> None:
    del internet.net.records[internet.zone.name, DS]
    internet.refused(bogus=False)


def test_a_zone_that_is_not_signed(internet: Internet) -> None:
    internet.zone.signed = False
    assert "not signed" in internet.refused(bogus=False)


def test_no_address_that_may_be_believed(internet: Internet) -> None:
    internet.change(f"{HOST}.", A, lambda answer: answer[:1])
    assert "not signed" in internet.refused(bogus=False)


def test_no_such_record(internet: Internet) -> None:
    assert internet.refused("other.example.net", bogus=False) == "no such record"


def test_a_zone_signs_only_what_is_in_it(internet: Internet) -> None:
    """The owner of one signed zone says nothing of another."""
    mallory = Zone("mallory.net.")
    internet.zones.insert(0, mallory)
    internet.net.put("mallory.net.", "DS", mallory.digest())
    forged = dns.rrset.from_text(RECORD, 5, "IN", "TXT", f'"v=1 {TWO}"')
    internet.change(RECORD, TXT, lambda _: [forged, mallory.signature(forged)])
    assert "not in" in internet.refused(bogus=True)
    internet.change(RECORD, TXT, lambda _: [forged, mallory.signature(forged, internet.zone.name)])
    internet.refused(bogus=True)


def test_a_zone_does_not_vouch_for_its_own_keys(internet: Internet) -> None:
    internet.zone.put("example.net.", "DS", internet.zone.digest())
    own = internet.zone.records[internet.zone.name, DS]
    internet.change("example.net.", DS, lambda _: [own, internet.zone.signature(own)])
    internet.refused(bogus=True)


def test_what_a_wildcard_made(internet: Internet) -> None:
    """It takes a proof that there is no such name, which nobody reads here."""
    wild = dns.rrset.from_text("*.example.net.", 5, "IN", "TXT", f'"v=1 {TWO}"')
    made = internet.zone.signature(wild)
    for rrset in (wild, made):
        rrset.name = from_text("_redirectctl.host.example.net.")
    internet.change("_redirectctl.host.example.net.", TXT, lambda _: [wild, made])
    internet.zone.put("host.example.net.", "A", PLACE)
    internet.refused("host.example.net", bogus=True)


def altered(records: list[RRset], **fields: object) -> list[RRset]:
    signed, signature = records
    return [signed, dns.rrset.from_rdata(signed.name, 5, signature[0].replace(**fields))]


def test_algorithms_that_are_not_known(internet: Internet) -> None:
    internet.change(RECORD, TXT, lambda answer: altered(answer, algorithm=200))
    assert "not known here" in internet.refused(bogus=False)
    internet.changed.clear()
    internet.net.put("example.net.", "DS", f"{dns.dnssec.key_id(internet.zone.key)} 200 2 {'00' * 32}")
    assert "not known here" in internet.refused(bogus=False)


@pytest.mark.parametrize("algorithm", [1, 3, 5, 6, 7, 12])
def test_algorithms_that_are_broken(internet: Internet, algorithm: int) -> None:
    internet.change(RECORD, TXT, lambda answer: altered(answer, algorithm=algorithm))
    assert "not known here" in internet.refused(bogus=False)


def test_a_digest_of_sha1_vouches_for_nothing(internet: Internet) -> None:
    policy = dns.dnssec.allow_all_policy
    weak = dns.dnssec.make_ds(internet.zone.name, internet.zone.key, "SHA1", policy=policy)
    internet.net.put("example.net.", "DS", weak.to_text())
    internet.refused(bogus=False)


@pytest.mark.parametrize("flags", [1, 257 | 128])
def test_keys_that_sign_no_zone(internet: Internet, flags: int) -> None:
    """Without the flag of zone keys, and revoked."""
    internet.zone.key = internet.zone.key.replace(flags=flags)  # type: ignore[assignment]
    internet.net.put("example.net.", "DS", internet.zone.digest())
    internet.refused(bogus=True)


def test_another_root(internet: Internet) -> None:
    other = Internet()
    with pytest.raises(NotSecureError):
        asyncio.run(Validator(other.anchors(), internet.ask, lambda: NOW).records(from_text(RECORD), TXT))


def test_an_anchor_below_the_root(internet: Internet) -> None:
    internet.root.signed = False
    trusted = secure.anchors(internet.zone.keys().to_text())
    assert asyncio.run(Validator(trusted, internet.ask, lambda: NOW).records(from_text(RECORD), TXT))
    internet.root.put(".", "A", PLACE)
    internet.root.signed = True
    with pytest.raises(NotSecureError, match="no trust anchor"):
        asyncio.run(Validator(trusted, internet.ask, lambda: NOW).records(dns.name.root, A))


def test_aliases(internet: Internet) -> None:
    internet.zone.put("www.example.net.", "CNAME", f"{HOST}.")
    internet.zone.put("_redirectctl.www.example.net.", "CNAME", RECORD)
    assert internet.look_up("www.example.net") == internet.look_up()
    internet.change("www.example.net.", A, lambda answer: answer[:1])
    internet.refused("www.example.net", bogus=False)


def test_aliases_that_lead_round(internet: Internet) -> None:
    internet.zone.put("_redirectctl.a.example.net.", "CNAME", "_redirectctl.b.example.net.")
    internet.zone.put("_redirectctl.b.example.net.", "CNAME", "_redirectctl.a.example.net.")
    assert "aliases" in internet.refused("a.example.net", bogus=True)
    assert internet.asked < secure.MAX_QUESTIONS


def test_too_many_records(internet: Internet) -> None:
    internet.zone.put(RECORD, "TXT", *(f'"v=1 {fingerprint(bytes([n]) * 32)}"' for n in range(17)))
    assert "more than 16 records" in internet.refused(bogus=True)


def test_too_many_signatures(internet: Internet) -> None:
    def many(answer: list[RRset]) -> list[RRset]:
        made = answer[1][0]
        assert isinstance(made, Signature)
        wrong = [made.replace(signature=bytes([n]) * 64) for n in range(5)]
        return [answer[0], dns.rrset.from_rdata_list(answer[0].name, 5, [*wrong, made])]

    internet.change(RECORD, TXT, many)
    assert "more than 4 signatures" in internet.refused(bogus=True)


def test_keys_that_are_alike_cost_no_more(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many keys with one tag, each of which would have to be tried with each signature (CVE-2023-50387)."""
    tag = dns.dnssec.key_id(internet.zone.key)
    monkeypatch.setattr(secure.dns.dnssec, "key_id", lambda key: tag)
    tried: list[RdataType] = []
    verify = dns.dnssec.validate_rrsig
    monkeypatch.setattr(
        secure.dns.dnssec, "validate_rrsig", lambda rrset, *rest: tried.append(rrset.rdtype) or verify(rrset, *rest)
    )
    trusted = secure.anchors(internet.zone.keys().to_text())
    internet.zone.alike = [Zone("example.net.").key for _ in range(12)]
    mallory = Zone("example.net.")
    forged = internet.zone.records[from_text(RECORD), TXT]
    wrong = [mallory.signature(forged)[0].replace(original_ttl=n, key_tag=tag) for n in range(4)]
    internet.change(RECORD, TXT, lambda _: [forged, dns.rrset.from_rdata_list(forged.name, 5, wrong)])
    with pytest.raises(NotSecureError, match="wrong signature"):
        asyncio.run(Validator(trusted, internet.ask, lambda: NOW).records(from_text(RECORD), TXT))
    assert tried.count(TXT) == len(wrong) * secure.MAX_ALIKE


def test_a_lookup_verifies_only_so_many_signatures(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "MAX_VERIFIED", 5)
    assert "more than 5 signatures" in internet.refused(bogus=True)


def test_a_name_as_deep_as_names_can_be(internet: Internet) -> None:
    """A chain of more zones than anybody has ends."""
    name, zones = "net.", []
    above = internet.net
    for _ in range(60):
        name = f"a.{name}"
        zone = Zone(name)
        above.put(name, "DS", zone.digest())
        zones.append(zone)
        above = zone
    internet.zones[:0] = reversed(zones)
    above.put(f"_redirectctl.{name}", "TXT", f'"v=1 {ONE}"')
    above.put(name, "A", PLACE)
    assert "more than" in internet.refused(name, bogus=True)
    assert internet.asked <= secure.MAX_QUESTIONS


def test_the_ad_bit_of_whoever_answers_says_nothing(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes over the wire: without signatures, and with the claim that they were right."""
    asked: list[dns.message.Message] = []

    class Hotspot:
        timeout = lifetime = cache = flags = None

        def use_edns(self, edns: int, flags: int, payload: int) -> None:
            assert flags == dns.flags.DO

        async def resolve(self, name: Name, kind: RdataType, **_: object) -> object:
            assert self.flags == dns.flags.RD | dns.flags.CD
            query = dns.message.make_query(name, kind)
            reply = dns.message.make_response(query)
            reply.flags |= dns.flags.AD
            text = f'"v=1 {TWO}"' if kind == TXT else "203.0.113.66"
            reply.answer = [dns.rrset.from_text(name, 5, "IN", kind, text)]
            asked.append(query)

            class Answer:
                response = reply

            return Answer()

    monkeypatch.setattr(secure.dns.asyncresolver, "Resolver", Hotspot)
    with pytest.raises(NotPublishedError, match="not signed") as caught:
        asyncio.run(published.look_up(HOST, internet.anchors()))
    assert asked
    assert not caught.value.bogus


def test_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(secure.dns.asyncresolver, "Resolver", none)
    with pytest.raises(NotPublishedError, match="no resolver"):
        asyncio.run(published.look_up(HOST, {}))


class TestAnchors:
    def test_both_forms(self) -> None:
        """As this program has them, and as Debian's dns-root-data writes them."""
        zone = Zone("lab.example.")
        text = f"; ours\nlab.example. IN DNSKEY {zone.key.to_text()} ; a comment\n"
        (digest,) = secure.anchors(text)[from_text("lab.example.")]
        assert digest.to_text() == zone.digest()
        assert [each.key_tag for each in secure.anchors(secure.ROOT)[dns.name.root]] == [20326, 38696]

    @pytest.mark.parametrize("text", ["", "; nothing\n", ". IN A 192.0.2.1\n", "what is this\n", ". IN DS 1 8 2 zz\n"])
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            secure.anchors(text)

    def test_a_file_that_has_none_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "anchors"
        file.write_text("nothing\n")
        file.chmod(0o644)
        with pytest.raises(ConfigError, match="no trust anchors"):
            published.load_anchors(str(file))
