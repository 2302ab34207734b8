import pytest

from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.constants import REJECT_AFTER_MESSAGES
from redirectctl.proto.errors import AuthError, MisuseError, Reason

KEY = bytes(range(32))


def reason(cipher: TransportCipher, counter: int, sealed: bytes, ad: bytes = b"") -> Reason:
    with pytest.raises(AuthError) as caught:
        cipher.open(counter, sealed, ad)
    return caught.value.reason


def test_rfc_8439_appendix_a5() -> None:
    """The only published AEAD vector whose nonce begins with four zero bytes, as Noise's does."""
    key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
    counter = int.from_bytes(bytes.fromhex("0102030405060708"), "little")
    sealed = bytes.fromhex(
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100"
        "d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e2b350638"
        "3606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf4534d7f83fa115"
        "5b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10"
        "49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709beead9d67890cbb22392336fea1851f"
        "38"
    )
    ad = bytes.fromhex("f33388860000000000004e91")
    plaintext = TransportCipher(key).open(counter, sealed, ad)
    assert plaintext.startswith(b"Internet-Drafts are draft documents valid for a maximum of six months")
    assert TransportCipher(key).seal(counter, plaintext, ad) == sealed


def test_everything_is_authenticated() -> None:
    cipher = TransportCipher(KEY)
    sealed = cipher.seal(7, b"payload", b"header")
    assert cipher.open(7, sealed, b"header") == b"payload"
    for index in range(len(sealed)):
        forged = bytearray(sealed)
        forged[index] ^= 0x40
        assert reason(cipher, 7, bytes(forged), b"header") is Reason.FORGED
    assert reason(cipher, 8, sealed, b"header") is Reason.FORGED
    assert reason(cipher, 7 + 2**32, sealed, b"header") is Reason.FORGED
    assert reason(cipher, 7, sealed, b"Header") is Reason.FORGED
    assert reason(cipher, 7, sealed) is Reason.FORGED
    assert reason(cipher, 7, sealed[:15], b"header") is Reason.TRUNCATED
    assert reason(TransportCipher(bytes(32)), 7, sealed, b"header") is Reason.FORGED


def test_counters_end_before_they_wrap() -> None:
    cipher = TransportCipher(KEY)
    last = REJECT_AFTER_MESSAGES - 1
    sealed = cipher.seal(last, b"x")
    assert cipher.open(last, sealed) == b"x"
    for counter in (REJECT_AFTER_MESSAGES, 2**64 - 1, 2**64, -1):
        with pytest.raises(MisuseError):
            cipher.seal(counter, b"x")
        assert reason(cipher, counter, sealed) is Reason.COUNTER_LIMIT
