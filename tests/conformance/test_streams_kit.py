"""The kit against a real `mentatlab up`: all of it passes, and what is wrong is told."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.asyncapi import DOCUMENT, of_message
from tests.support.redis import redis_server
from tests.support.server import Up, mentatlab, up

from mentatlab.conformance import (
    VERBS,
    Case,
    Result,
    load_cases,
    play_cases,
    shipped_cases,
)

CASES = load_cases(shipped_cases(), VERBS)
SAMPLE = 200
"""How many messages of one kind are held against their schema."""

Messages = dict[str, list[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, str]]:
    """One that asks everybody for a credential, on the portable transport; and a key."""
    home = tmp_path_factory.mktemp("home")
    added = mentatlab("keys", "add", "--name", "kit", *SCOPES, "--json", home=home)
    with up(home, "--host", "0.0.0.0", env={"MENTATLAB_TRANSPORT": "portable"}) as running:
        yield running, json.loads(added.stdout)["key"]


SCOPES = ("--scope", "read", "--scope", "run", "--scope", "publish")


def failures(results: list[Result]) -> list[str]:
    return [f"{r.theme}/{r.id}: {r.message}" for r in results if r.outcome == "failed"]


def play(server: Up, cases: list[Case], **options: Any) -> list[Result]:
    return asyncio.run(play_cases(cases, server.url, **options))


@pytest.mark.timeout(300)
def test_the_kit_passes_and_what_it_hears_is_in_the_schemas(server: Up) -> None:
    heard: Messages = defaultdict(list)
    results = play(server, CASES, heard=lambda message: file_away(heard, message))
    assert failures(results) == []
    assert sum(result.outcome == "passed" for result in results) >= 150
    assert {"welcome", "subscribed", "mark", "gap", "streamData", "deliveredFrame"} <= heard.keys()
    assert list(misfits(heard)) == []


def file_away(heard: Messages, message: Any) -> None:
    """By the name of its message in the AsyncAPI document."""
    match message:
        case {"binary": frame}:
            heard["deliveredFrame"].append(frame)
        case {"event": name, "data": data}:
            heard[BESIDE_RECORDS.get(name) or BY_TYPE[name]].append(data)
        case {"type": name}:
            heard[BY_TYPE[name]].append(message)
        case _:
            assert message.keys() <= {"closed", "websocket_pong"}


SAID = [m["$ref"].rpartition("/")[2] for m in DOCUMENT["operations"]["serverSays"]["messages"]]
BY_TYPE = {DOCUMENT["components"]["messages"][name]["name"]: name for name in SAID}
BESIDE_RECORDS = {"hello": "eventHello", "gap": "eventGap", "mark": "eventMark"}


def misfits(heard: Messages) -> Iterator[str]:
    for name, messages in heard.items():
        schema = of_message(name)
        for message in messages[:SAMPLE]:
            for error in schema.iter_errors(message):
                yield f"{name}: {error.json_path}: {error.message[:200]}"


@pytest.mark.timeout(300)
def test_the_kit_passes_portably_and_where_a_credential_is_needed(guarded: tuple[Up, str]) -> None:
    server, key = guarded
    results = play(server, CASES, key=key)
    assert failures(results) == []
    outcomes = {result.id: result.outcome for result in results}
    assert outcomes["token-in-hello"] == "passed"
    assert outcomes["foreign-host"] == "skipped"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kit_passes_on_redis(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as redis,
        up(tmp_path / "home", env={"MENTATLAB_LOG": redis.url}) as server,
    ):
        assert failures(play(server, CASES)) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_takes_its_time_passes(server: Up, guarded: tuple[Up, str]) -> None:
    slow = [case for case in CASES if case.slow]
    assert failures(play(server, slow, slow=True, jobs=len(slow))) == []
    guards = [case for case in slow if case.needs == "credentials"]
    assert failures(play(guarded[0], guards, slow=True, key=guarded[1])) == []


def test_the_command(server: Up) -> None:
    done = mentatlab("conformance", server.url, "--only", "cancel*", home=server.home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].split() == ["theme", "passed", "failed", "skipped"]
    assert done.stdout.splitlines()[1].split() == ["cancel", "11", "0", "0"]


WRONG = """
cases:
  - id: right
    rule: A stream begins with its stream_start.
    section: Records
    steps: [{init: {}}, {plain: $id, from: start}, {expect: [{type: stream_start}]}]
  - id: wrong
    rule: A stream begins with its end.
    section: nowhere
    steps: [{init: {}}, {plain: $id, from: start}, {expect: [{type: stream_end}]}]
  - id: never
    rule: A record comes that nobody sent.
    section: nowhere
    timeout_s: 0.2
    steps: [{init: {}}, {plain: $id, from: start}, {await: {type: stream_data}}]
  - id: unbound
    rule: What is not known cannot be sent.
    section: nowhere
    steps: [{http: GET /api/v1/streams/$nobody}]
  - id: beside
    rule: Of steps that are played together the wrong one is told.
    section: nowhere
    steps: [{together: [[{init: {}}], [{plain: st_nobody}, {closed: 1000}]]}]
  - id: elsewhere
    rule: Only where nobody is let in.
    section: nowhere
    needs: credentials
    steps: [{init: {}}]
"""


def test_what_is_wrong_is_told(server: Up, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(WRONG)
    done = mentatlab("conformance", server.url, "--cases", tmp_path, "--json", home=server.home)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["passed"], told["failed"], told["skipped"]) == (1, 4, 1)
    messages = {case["id"]: case["message"] for case in told["cases"]}
    assert messages["right"] == ""
    assert "step 3 (expect): /type: expected 'stream_end', got 'stream_start'" in messages["wrong"]
    assert "nothing like {'type': 'stream_data'} came (passed over: [{'type'" in messages["never"]
    assert "$nobody is not known" in messages["unbound"]
    assert "step 1 (together): step 2 (closed): /closed/code" in messages["beside"]


def test_what_is_wrong_is_told_in_words(server: Up, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(WRONG)
    done = mentatlab(
        "conformance", server.url, "--cases", tmp_path, "--only", "wrong", home=server.home
    )
    assert done.returncode == 1
    assert "odd/wrong\n  rule: A stream begins with its end. (nowhere)\n  step 3" in done.stdout


def test_nothing_chosen_is_no_success(server: Up) -> None:
    done = mentatlab("conformance", server.url, "--only", "nothing", home=server.home)
    assert done.returncode == 1


def test_nobody_there(tmp_path: Path) -> None:
    done = mentatlab("conformance", "http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 1
    assert "SERVER_UNREACHABLE" in done.stderr
