"""What a person wants to see of a run while it goes."""

from typing import Any

import click

_WORDS = {
    "run_started": ("started", "blue"),
    "node_started": ("started", "blue"),
    "node_succeeded": ("done", "green"),
    "retry_scheduled": ("will be tried again", "yellow"),
    "node_failed": ("failed", "red"),
    "node_upstream_failed": ("cannot start: what it needs failed", "red"),
    "node_cancelled": ("cancelled", "yellow"),
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
    if event["type"] not in _WORDS:
        return ""
    word, colour = _WORDS[event["type"]]
    return f"{subject} {click.style(word, fg=colour)}{_error(payload.get('error'))}"


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
