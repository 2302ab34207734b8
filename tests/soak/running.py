"""What the long commands share: options, a lab, and what is left of it after a failure."""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from redirectctl.lab.namespaces import ended_by_signals
from redirectctl.lab.topology import Lab


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seed", type=int, help="of an earlier run, for the same steps")
    made.add_argument("--keep-log", type=Path, metavar="DIR", help="where to copy logs and state after a failure")
    return made


def seed_of(arguments: argparse.Namespace) -> int:
    """What was given, or a new one; it is printed, because it is needed again when something fails."""
    seed: int = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"--seed {seed}", flush=True)
    return seed


def say(text: str) -> None:
    """On stdout, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def in_lab(work: Callable[[Lab], None], keep: Path | None) -> bool:
    """Do it in a lab of its own.  False when it failed: then why is printed, and logs are kept."""
    with ended_by_signals(), Lab() as lab:
        try:
            work(lab)
        except Exception:
            traceback.print_exc()
            if keep is not None:
                _save(lab, keep)
            return False
    return True


def _save(lab: Lab, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "lab").write_text(lab.report())
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/log")):
        (directory / f"{log.parent.name}.log").write_text(log.read_text(errors="replace"))
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/state/events.jsonl")):
        (directory / f"{log.parents[1].name}.events").write_text(log.read_text(errors="replace"))
