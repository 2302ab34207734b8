"""redirectd as it is, but its kick does nothing: what plain rewriting of addresses comes to."""

import sys
from collections.abc import Collection

from redirectctl.daemon.main import main
from redirectctl.kernel.kick import Kicker
from redirectctl.wire.addr import FourTuple


async def do_nothing(_kicker: Kicker, _connections: Collection[FourTuple]) -> int:
    return 0


if __name__ == "__main__":
    Kicker.kick = do_nothing  # type: ignore[method-assign]
    sys.exit(main())
