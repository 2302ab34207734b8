"""An application that asks the daemon, in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from textual.app import App
from textual.message import Message

from redirectctl.api import schema
from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import RequestError
from redirectctl.api.text import clean
from redirectctl_tui.feed import Source
from redirectctl_tui.model import View
from redirectctl_tui.screens.dialogs import Confirm

ReplyT = TypeVar("ReplyT", bound=schema.Reply)


class Answered(Message):
    """A request has its reply."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then


class AskingApp(App[None]):
    """Requests out, replies back; questions to the person before."""

    def __init__(self, source: Source, *, ansi_color: bool | None) -> None:
        super().__init__(ansi_color=ansi_color)
        self._source = source
        self.view: View | None = None  # the latest

    def confirm(self, title: str, text: str, yes: str, then: Callable[[], None]) -> None:
        """Ask the person first."""
        self.push_screen(Confirm(title, text, yes), lambda answer: then() if answer == "yes" else None)

    def ask(
        self,
        request: schema.Request,
        reply: type[ReplyT],
        then: Callable[[ReplyT], None],
        otherwise: Callable[[Exception], None] | None = None,
    ) -> None:
        """Ask in a thread; `then` with the reply, or `otherwise` with the error, is called in the app's."""
        failed = otherwise or self._failed

        def work() -> None:
            try:
                answer = self._source.ask(request, reply)
            except (RequestError, UnreachableError) as error:
                refused = error
                self.post_message(Answered(lambda: failed(refused)))
            else:
                self.post_message(Answered(lambda: then(answer)))
                self._source.poke()

        self.run_worker(work, thread=True)

    def on_answered(self, message: Answered) -> None:
        """The reply has come."""
        message.then()

    def _failed(self, error: Exception) -> None:
        self.notify(clean(str(error)), title="not done", severity="error", timeout=10, markup=False)
