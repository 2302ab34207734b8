from collections.abc import Callable
from pathlib import Path

import pytest

from redirectctl.api import schema
from redirectctl.api.client import Client, UnreachableError

HELLO = b'{"type":"hello","version":"0.1.0","api":1}\n'
EVENT = b'{"type":"event","event":{"time":1.0,"event":"rst.held"}}\n'


def announce(path: str, timeout: float = 30.0) -> int:
    with Client(path, timeout) as client:
        return client.call(schema.AnnounceRequest(), schema.AnnounceReply).peers


def test_an_answer(scripted: Callable[..., str]):
    assert announce(scripted(before=HELLO, after=b'{"type":"announce","peers":3}\n')) == 3


def test_a_refusal(scripted: Callable[..., str]):
    path = scripted(
        before=HELLO,
        after=b'{"type":"error","code":"denied","what":"announce","why":"not permitted","hint":"be root"}\n',
    )
    with pytest.raises(schema.RequestError, match="announce: not permitted; be root") as caught:
        announce(path)
    assert caught.value.error.code is schema.ErrorCode.DENIED


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (b"", b"", "the daemon ended the connection; look into its log"),
        (HELLO, b"", "the daemon ended the connection"),
        (HELLO, b'{"type":"announce","peers":', "the daemon ended the connection; look into its log"),
        (HELLO, b'{"type":"opted-in"}\n', r"not understood \(OptedIn instead of AnnounceReply\); install the same"),
        (HELLO, b'{"type":"announce","peers":"many"}\n', "not understood"),
        (HELLO, b"\xff\xff\n", "not understood"),
        (b"220 smtp.example.net\r\n", b"", "not understood"),
        (b'{"type":"opted-in"}\n', b"", r"not understood \(OptedIn instead of Hello\)"),
        (
            b'{"type":"hello","version":"3.1","api":7}\n',
            b"",
            "redirectd 3.1 speaks version 7 of the interface, this program 1; install the same version of both",
        ),
    ],
)
def test_a_daemon_that_is_not_understood(scripted: Callable[..., str], before: bytes, after: bytes, why: str):
    with pytest.raises(UnreachableError, match=why):
        announce(scripted(before=before, after=after))


@pytest.mark.parametrize("before", [b"", HELLO])
def test_a_daemon_that_hangs(scripted: Callable[..., str], before: bytes):
    with pytest.raises(UnreachableError, match="the daemon does not answer; look into its log or restart it"):
        announce(scripted(before=before, hang=True), timeout=0.05)


def test_an_endless_line(scripted: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "MAX_REPLY", 1000)
    with pytest.raises(UnreachableError, match="an endless line"):
        announce(scripted(before=HELLO, after=b"x" * 5000, hang=True))


def test_no_daemon(tmp_path: Path):
    with pytest.raises(UnreachableError, match=r"none: no daemon listens there; `systemctl start redirectd`, or name"):
        Client(str(tmp_path / "none"))
    with pytest.raises(UnreachableError, match="AF_UNIX path too long"):
        Client("x" * 200)


def test_events(scripted: Callable[..., str]):
    with Client(scripted(before=HELLO, after=EVENT * 3 + b'{"type":"events-end"}\n')) as client:
        assert list(client.events()) == [schema.Event(time=1.0, event=schema.EventName.RST_HELD)] * 3


def test_following_until_the_daemon_stops(scripted: Callable[..., str]):
    with Client(scripted(before=HELLO, after=EVENT)) as client:
        events = client.events(follow=True)
        assert next(events).time == 1.0
        with pytest.raises(UnreachableError, match="ended the connection"):
            next(events)


def test_something_else_among_events(scripted: Callable[..., str]):
    with (
        Client(scripted(before=HELLO, after=EVENT + b'{"type":"opted-in"}\n')) as client,
        pytest.raises(UnreachableError, match="OptedIn among events"),
    ):
        list(client.events())
