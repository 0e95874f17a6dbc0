"""What `runConfig.webhooks` may say."""

from collections.abc import Callable
from typing import Any

import pytest

from mentatlab.flows import Flow, Lookup, check_flow, compile_plan, load_flow
from mentatlab.flows.webhooks import EVENTS, MOST_WEBHOOKS
from mentatlab.protocol.errors import Problem, ValidationFailed

FlowOf = Callable[..., Flow]
GOOD = {"url": "https://receiver.example/hook?a=b", "secret": "HOOK_SECRET"}


@pytest.fixture
def with_webhooks(flow_of: FlowOf) -> Callable[..., Flow]:
    flow = flow_of({"p": "ui.prompt", "c": "ui.console"}, "p.text > c.any")

    def make(*webhooks: dict[str, Any]) -> Flow:
        return load_flow({**flow.document(), "runConfig": {"webhooks": [*webhooks]}})

    return make


def told(problems: list[Problem]) -> list[str]:
    return [f"{p.code} {p.path.removeprefix('/runConfig/webhooks')}" for p in problems]


def test_good_ones_and_whose_secrets_must_be_there(
    with_webhooks: Callable[..., Flow], lookup: Lookup
) -> None:
    flow = with_webhooks(
        GOOD,
        {**GOOD, "url": "HTTP://[2001:db8::1]:8080", "events": list(EVENTS), "x-note": 1},
        {**GOOD, "url": "https://bücher.example", "secret": "OTHER"},
    )
    assert check_flow(flow, lookup) == []
    assert compile_plan(flow, lookup).webhook_secrets == ("HOOK_SECRET", "HOOK_SECRET", "OTHER")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": "receiver.example"}, "WEBHOOK_INVALID /0/url"),
        ({"url": "ftp://receiver.example"}, "WEBHOOK_INVALID /0/url"),
        ({"url": "https://"}, "WEBHOOK_INVALID /0/url"),
        ({"url": "https://receiver.example/\n"}, "WEBHOOK_INVALID /0/url"),
        ({"url": "https://me:word@receiver.example"}, "WEBHOOK_INVALID /0/url"),
        ({"url": "https://receiver.example/" + "x" * 3000}, "WEBHOOK_INVALID /0/url"),
        ({"events": []}, "WEBHOOK_INVALID /0/events"),
        ({"events": ["run_failed", "run_ended"]}, "WEBHOOK_INVALID /0/events/1"),
        ({"secret": "whsec_0123456789"}, "SECRET_INVALID /0/secret"),
        ({"secret": "PATH"}, "SECRET_INVALID /0/secret"),
        ({"event": ["run_failed"]}, "UNKNOWN_FIELD /0/event"),
    ],
)
def test_what_cannot_be_asked_for(
    with_webhooks: Callable[..., Flow], lookup: Lookup, fields: dict[str, Any], problem: str
) -> None:
    (found,) = check_flow(with_webhooks({**GOOD, **fields}), lookup)
    assert (told([found]), found.severity) == ([problem], "error")
    assert found.hint


def test_everything_at_once_with_what_else_is_wrong(
    with_webhooks: Callable[..., Flow], lookup: Lookup
) -> None:
    bad = {"url": "x", "secret": "y", "events": ["run_fail"], "retries": 3}
    flow = with_webhooks(GOOD, bad)
    problems = check_flow(flow, lookup)
    assert told(problems) == [
        "WEBHOOK_INVALID /1/url",
        "WEBHOOK_INVALID /1/events/0",
        "SECRET_INVALID /1/secret",
        "UNKNOWN_FIELD /1/retries",
    ]
    assert problems[1].hint == "did you mean run_failed?"


def test_how_many_and_what_is_missing(with_webhooks: Callable[..., Flow], lookup: Lookup) -> None:
    assert check_flow(with_webhooks(*[GOOD] * MOST_WEBHOOKS), lookup) == []
    found = check_flow(with_webhooks(*[GOOD] * (MOST_WEBHOOKS + 1)), lookup)
    assert told(found) == ["FLOW_LIMIT "]
    with pytest.raises(ValidationFailed) as failed:
        with_webhooks({})
    assert told(failed.value.problems) == ["FLOW_INVALID /0/url", "FLOW_INVALID /0/secret"]
