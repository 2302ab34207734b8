"""Whether our nftables table is as we left it, without reading it with libnftables (0.1 s for 1,000 connections).

Every change of the ruleset, whoever makes it, has a number of its own (NFT_MSG_GETGEN).  As long as that is the one of
the last look nothing can have changed.  Else the kernel is asked for what it has, and rules and elements are counted.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from redirectctl.kernel import netlink
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter import nf_tables as nf

_GROUP_NFTABLES: Final = 7  # NFNLGRP_NFTABLES
_RECEIVE = 1 << 16
_TIMEOUT = 5.0  # seconds; the kernel answers within send()


class RulesetWatch:
    """Looks at one table of family inet.  Belongs to the network namespace of the thread that makes it.

    Methods raise KernelError.
    """

    def __init__(self, table: str) -> None:
        self._table = table.encode() + b"\0"
        self._requests = _open()
        self._requests.settimeout(_TIMEOUT)
        self._events = _open()
        self._events.setblocking(False)
        self._member = False

    def close(self) -> None:
        """Close the sockets."""
        self._requests.close()
        self._events.close()

    def fileno(self) -> int:
        """Readable when somebody has changed the ruleset, once heed() was called."""
        return self._events.fileno()

    def heed(self) -> None:
        """Be told of changes from now on."""
        self._events.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, _GROUP_NFTABLES)
        self._member = True

    def drain(self) -> None:
        """Forget what has been told: that something was is all there is to know."""
        while True:
            try:
                self._events.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more was told than there was room for
                    raise KernelError("watch nftables", str(error), "redirectctl needs root") from error

    @contextmanager
    def ours(self) -> Iterator[None]:
        """What is changed in here is not told: for 1,000 connections the kernel would write 8,000 messages."""
        if not self._member:
            yield
            return
        self._events.setsockopt(netlink.SOL_NETLINK, netlink.DROP_MEMBERSHIP, _GROUP_NFTABLES)
        try:
            yield
        finally:
            self._events.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, _GROUP_NFTABLES)

    def generation(self) -> int:
        """The number of the ruleset's last change; 0.02 ms."""
        for kind, body in self._ask(nf.GETGEN, nf.GENERIC.pack(0, 0, 0), dump=False):
            if kind == nf.NEWGEN:
                for number, value in netlink.attributes(body, nf.GENERIC.size):
                    if number == nf.GEN_ID:
                        return int.from_bytes(value, "big")
        raise KernelError("ask for the ruleset's generation", "no answer", "the kernel needs nf_tables")

    def rules(self) -> Counter[str]:
        """How many rules each chain of the table has; empty without the table."""
        found: Counter[str] = Counter()
        body = nf.INET + netlink.attribute(nf.RULE_TABLE, self._table)
        for kind, answer in self._ask(nf.GETRULE, body, dump=True):
            if kind == nf.NEWRULE:
                values = dict(netlink.attributes(answer, nf.GENERIC.size))
                if values.get(nf.RULE_TABLE) == self._table:  # older kernels do not filter
                    found[values[nf.RULE_CHAIN].rstrip(b"\0").decode()] += 1
        return found

    def elements(self, names: Iterable[str]) -> Counter[str]:
        """How many elements these sets and maps have."""
        found: Counter[str] = Counter()
        for name in names:
            for kind, answer in self._ask(nf.GETSETELEM, nf.of_set(self._table, name), dump=True):
                if kind == nf.NEWSETELEM:
                    listed = dict(netlink.attributes(answer, nf.GENERIC.size)).get(nf.LIST_ELEMENTS, b"")
                    found[name] += sum(1 for _ in netlink.attributes(listed))
        return found

    def _ask(self, kind: int, body: bytes, *, dump: bool) -> Iterator[tuple[int, bytes]]:
        """The messages of the answer; nothing of a table or set that is not there."""
        try:
            self._requests.send(netlink.request(kind, netlink.DUMP if dump else 0, 0, body))
            while True:
                data = self._requests.recv(_RECEIVE)
                for number, _, _, start, end in netlink.split(data):
                    if number == netlink.ERROR:
                        if (code := netlink.errno_in(data, start, end)) not in (0, errno.ENOENT):
                            raise OSError(code, "")
                        return
                    if number == netlink.DONE:
                        return
                    yield number, data[start:end]
                if not dump:
                    return
        except OSError as error:
            raise KernelError("look at nftables", str(error), "redirectctl needs root and nf_tables") from error


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nf.NETLINK_NETFILTER)
    sock.bind((0, 0))
    return sock
