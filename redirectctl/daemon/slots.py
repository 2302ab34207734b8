"""Who may be a client of the Unix socket, when there are many.  Pure.

Nobody has more slots than are left for all others, and root has some that are its own.  Who has no slot left, or finds
none, gets that of an idle client: his own, else of the user who has most.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

ROOT: Final = 0


@dataclass(slots=True, eq=False)
class Slot:
    """One client's."""

    uid: int
    idle_since: float | None = None  # None: something is done for it


class Slots:
    """For a number of clients at once."""

    def __init__(self, total: int, of_user: int) -> None:
        """total: of all users but root, who has as many as one user may have, beside them."""
        self._total = total
        self._of_user = of_user
        self._taken: list[Slot] = []

    def __len__(self) -> int:
        return len(self._taken)

    def enter(self, uid: int) -> tuple[Slot | None, Slot | None]:
        """A slot, if there is one, and the one in whose place it is, whose client has to end."""
        users = Counter(slot.uid for slot in self._taken)
        left = self._total - (users.total() - users[ROOT])
        room = self._of_user if uid == ROOT else min(self._of_user, left)
        ended = None
        if users[uid] >= room:
            ended = self._idle(uid if users[uid] else self._greediest(users))
            if ended is None:
                return None, None
            self._taken.remove(ended)
        slot = Slot(uid)
        self._taken.append(slot)
        return slot, ended

    def leave(self, slot: Slot) -> None:
        """Its client has ended; one that has lost its slot already may end too."""
        if slot in self._taken:
            self._taken.remove(slot)

    def _idle(self, uid: int | None) -> Slot | None:
        """The one that has been idle for longest."""
        idle = [(slot.idle_since, slot) for slot in self._taken if slot.uid == uid and slot.idle_since is not None]
        return min(idle, key=lambda each: each[0])[1] if idle else None

    def _greediest(self, users: Counter[int]) -> int | None:
        """Of those who have an idle client."""
        return next((uid for uid, _ in users.most_common() if uid != ROOT and self._idle(uid)), None)
