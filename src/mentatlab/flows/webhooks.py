"""What `runConfig.webhooks` may say: who is told of a run's end. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import get_args

from pydantic import HttpUrl, TypeAdapter, ValidationError

from mentatlab.flows.analysis import Analysis, choices, into
from mentatlab.flows.document import pointer
from mentatlab.flows.flow import RunEventName, RunWebhook
from mentatlab.protocol.agent import is_secret_name
from mentatlab.protocol.errors import Code

EVENTS: tuple[str, ...] = get_args(RunEventName)
MOST_WEBHOOKS = 20
"""Of one flow."""
_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)
_URL_HINT = "write an address like https://example.org/hooks/runs"
_NOT_IN_URLS = re.compile(r"[\s\x00-\x1f\x7f\\]")


def url_fault(url: str) -> str:
    """Why nothing can be sent to it; "" = it can."""
    shown = repr(url[:100])
    try:
        parsed = _URL.validate_python(url)
    except ValidationError:
        return f"{shown} is no address that begins with http:// or https://"
    if _NOT_IN_URLS.search(url):
        return f"{shown} has blanks, control characters or backslashes in it"
    if parsed.username or parsed.password:
        return "an address with a user or password in it would be shown in lists"
    return ""


def unknown_events(events: Iterable[str]) -> list[str]:
    return [name for name in events if name not in EVENTS]


def check_webhooks(a: Analysis) -> None:
    webhooks = a.flow.run_config.webhooks
    path = pointer("runConfig", "webhooks")
    if len(webhooks) > MOST_WEBHOOKS:
        text = f"the flow has {len(webhooks)} webhooks, over {MOST_WEBHOOKS}"
        a.report(Code.FLOW_LIMIT, path, text, "let one receiver pass it on to the others")
        return
    for index, webhook in enumerate(webhooks):
        _check(a, webhook, into(path, index))


def _check(a: Analysis, webhook: RunWebhook, path: str) -> None:
    if fault := url_fault(webhook.url):
        a.report(Code.WEBHOOK_INVALID, into(path, "url"), fault, _URL_HINT)
    if not webhook.events:
        text = "without events nothing is ever sent"
        a.report(Code.WEBHOOK_INVALID, into(path, "events"), text, choices("events", EVENTS))
    for name in unknown_events(webhook.events):
        place = into(path, "events", webhook.events.index(name))
        text = f"there is no event {name[:100]!r}"
        hint = choices("events", EVENTS, instead_of=name)
        a.report(Code.WEBHOOK_INVALID, place, text, hint)
    if not is_secret_name(webhook.secret):
        text = f"{webhook.secret[:100]!r} cannot be the name of a secret"
        hint = "the name, not the value: `mentatlab secrets set WEBHOOK_SECRET`"
        a.report(Code.SECRET_INVALID, into(path, "secret"), text, hint)
    _check_fields(a, webhook.model_extra or {}, path)


def _check_fields(a: Analysis, extra: Mapping[str, object], path: str) -> None:
    """A misspelt `events` would send more than was asked for, so it is an error here."""
    for name in extra:
        if not name.startswith(("x-", "_")):
            text = f"a webhook has no field {name!r}"
            hint = choices("fields", RunWebhook.model_fields, instead_of=name)
            a.report(Code.UNKNOWN_FIELD, into(path, name), text, hint)
