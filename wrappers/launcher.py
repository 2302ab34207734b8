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


def script(python: str) -> str:
    """The launcher's text.  Raises ValueError when no shebang line can name that Python."""
    shebang = f"#!{python} -ISXutf8"
    if len(os.fsencode(shebang)) > MAX_SHEBANG or any(c.isspace() for c in python):
        raise ValueError(f"{python}: too long or with a space, cannot stand on a #! line")
    folders = [str(Path(run.__file__).resolve().parent), str(Path(redirectctl.__file__).resolve().parent.parent)]
    return f"{shebang}\nimport sys\n\nsys.path += {folders!r}\nfrom run import main\n\nsys.exit(main())\n"


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
