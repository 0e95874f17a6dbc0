"""What a person wants to see while something goes on."""

import contextlib
import sys
from collections.abc import Callable, Generator
from typing import Any

import click

from mentatlab.cli.output import wants_json

_WORDS = {
    "run_started": ("started", "blue"),
    "node_started": ("started", "blue"),
    "node_succeeded": ("done", "green"),
    "retry_scheduled": ("will be tried again", "yellow"),
    "node_failed": ("failed", "red"),
    "node_upstream_failed": ("cannot start: what it needs failed", "red"),
    "node_cancelled": ("cancelled", "yellow"),
    "node_skipped": ("skipped", "yellow"),
    "node_cached": ("taken over from an earlier run", "green"),
    "gate_opened": ("waits for an approval", "yellow"),
    "run_paused": ("is paused", "yellow"),
    "run_resumed": ("goes on", "blue"),
    "run_ending": ("is ending", "yellow"),
}


def describe_event(event: dict[str, Any]) -> str:
    """One line, or "" for what only programs care about."""
    payload, subject = event.get("payload", {}), event.get("node_id") or "run"
    if event.get("item") is not None:
        subject = f"{subject}[{event['item']}]"
    if event["type"] == "run_finished":
        state = payload["state"]
        colour = {"succeeded": "green", "partial": "yellow"}.get(state, "red")
        return f"{subject} {click.style(state, fg=colour)}{_error(payload.get('error'))}"
    if event["type"] == "gate_closed":
        word = "approved" if payload["approved"] else "rejected"
        return f"{subject} {click.style(word, fg='blue')}"
    if event["type"] not in _WORDS:
        return ""
    word, colour = _WORDS[event["type"]]
    said = f": {payload['message']}" if payload.get("message") else ""
    return f"{subject} {click.style(word, fg=colour)}{said}{_error(payload.get('error'))}"


def _error(error: dict[str, Any] | None) -> str:
    if not error:
        return ""
    hint = f"\n  hint: {error['hint']}" if error.get("hint") else ""
    return f": {error['code']}: {error['message']}{hint}"


def text_of(data: Any) -> str:
    """The text that a streamed element carries, "" when it is not one of text."""
    match data:
        case str():
            return data
        case {"text": str(text)} | {"delta": str(text)}:
            return text
        case _:
            return ""


@contextlib.contextmanager
def bar(label: str, *, counted: bool = False) -> Generator[Callable[[int, int | None], None]]:
    """A bar that is told how much is done, and of how much (None while nobody knows).

    Only for eyes: on a terminal, and not under `--json`. `counted`: with the numbers.
    """
    if wants_json() or not sys.stderr.isatty():
        yield lambda _done, _whole: None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr, show_pos=counted) as shown:

        def tell(done: int, whole: int | None) -> None:
            shown.length = max(whole or 0, done, 1)
            shown.update(done - shown.pos)

        yield tell
