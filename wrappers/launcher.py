"""Writes a redirect-run that starts quicker than pip's console script: python -m redirectctl_wrappers.launcher FILE.

The shebang line gives Python -I (PYTHON* variables of the command are not meant for us) and -S (no site-packages, whose
start-up files cost more than all the rest), and UTF-8 mode, in which every byte of the arguments comes through.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import redirectctl
from redirectctl_wrappers import run

MAX_SHEBANG = 127  # bytes: what Linux before 5.1 reads of the first line
# The package is made by hand: the folder has another name where this is a working copy.
_SCRIPT = """\
{shebang}
import sys

package = sys.modules["redirectctl_wrappers"] = type(sys)("redirectctl_wrappers")
package.__path__ = [{wrappers!r}]
sys.path.append({library!r})

from redirectctl_wrappers.run import main

sys.exit(main())
"""


def script(python: str) -> str:
    """The launcher's text.  Raises ValueError when no shebang line can name that Python."""
    shebang = f"#!{python} -ISXutf8"
    if len(os.fsencode(shebang)) > MAX_SHEBANG or any(c.isspace() for c in python):
        raise ValueError(f"{python}: too long or with a space, cannot stand on a #! line")
    wrappers, library = Path(run.__file__).resolve().parent, Path(redirectctl.__file__).resolve().parent.parent
    return _SCRIPT.format(shebang=shebang, wrappers=str(wrappers), library=str(library))


def main() -> int:
    """Replace the file that is named; where that cannot work the one that pip wrote stays, which is slower only."""
    target = Path(sys.argv[1])
    try:
        text = script(sys.executable)
    except ValueError as error:
        print(f"redirect-run keeps pip's start script: {error}", file=sys.stderr)
        return 0
    fresh = target.with_name(target.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o755)
    fresh.replace(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
