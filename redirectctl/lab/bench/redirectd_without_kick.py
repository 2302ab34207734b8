"""redirectd as it is, but its kick does nothing: what plain rewriting of addresses comes to."""

import sys
from collections.abc import Collection

from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.redirectd import main
from redirectctl.wire.addr import FourTuple


def find_nothing(_backoff: BackoffReverter, _connections: Collection[FourTuple]) -> list[SocketInfo]:
    """Instead of the connections to push."""
    return []


if __name__ == "__main__":
    BackoffReverter.revert = find_nothing  # type: ignore[method-assign,assignment]
    BackoffReverter.revert_early = find_nothing  # type: ignore[method-assign,assignment]
    sys.exit(main())
