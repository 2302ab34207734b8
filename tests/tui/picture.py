"""A picture of the UI as an SVG, of what real daemons said (record.py):

python -m tests.tui.picture SCENE WIDTHxHEIGHT FILE.svg [KEY...], as in  resumed 100x30 ui.svg 3
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from redirectctl_tui.app import RedirectApp
from tests.tui.recorded import Recorded, scene


async def picture(name: str, size: tuple[int, int], keys: list[str]) -> str:
    """The SVG after these keys."""
    shown = scene(name)
    app = RedirectApp(Recorded(shown), "laptop", lambda: shown.view.at)
    async with app.run_test(size=size) as pilot:
        for key in [None, *keys]:
            if key is not None:
                await pilot.press(key)
            await app.workers.wait_for_complete()
            await pilot.pause()
        return app.export_screenshot()


def main() -> int:
    """See above."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    name, size, file, *keys = sys.argv[1:]
    os.environ["TZ"] = "UTC"
    time.tzset()
    width, _, height = size.partition("x")
    Path(file).write_text(asyncio.run(picture(name, (int(width), int(height)), keys)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
