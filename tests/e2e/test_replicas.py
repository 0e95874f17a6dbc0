"""Several servers on one Postgres, one Redis and one bucket: what one begins another ends."""

import contextlib
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.api import Api, api_of
from tests.support.postgres import postgres, postgres_server
from tests.support.redis import RedisProcess
from tests.support.seaweed import SeaweedProcess
from tests.support.server import Up, mentatlab, up
from tests.support.webhook_receiver import receiving

from mentatlab.testing.house import write_agent

pytestmark = pytest.mark.slow

SECRET = "the same on all servers, and long enough"
WAITER = """
    import json, pathlib, sys, time
    folder = pathlib.Path(json.load(sys.stdin)["folder"])
    with (folder / "begun").open("a") as log:
        log.write("x")
    while not (folder / "go").exists():
        time.sleep(0.02)
    print(json.dumps({"said": "done"}))
"""
FLOW: dict[str, Any] = {
    "apiVersion": "v1beta1",
    "kind": "Flow",
    "meta": {"id": "wait", "name": "wait", "version": "0.1.0"},
    "graph": {
        "nodes": [
            {"id": "where", "type": "ui.prompt"},
            {"id": "wait", "type": "test.waiter"},
            {"id": "out", "type": "ui.console"},
        ],
        "edges": [
            {"from": "where.text", "to": "wait.folder"},
            {"from": "wait.said", "to": "out.text"},
        ],
    },
}


class Site(NamedTuple):
    """What the servers share; `server(name)` starts one more."""

    folder: Path
    server: Callable[[str], contextlib.AbstractContextManager[Up]]


def add_waiter(folder: Path) -> None:
    write_agent(
        folder / "agents",
        "test.waiter",
        WAITER,
        inputs=[{"name": "folder", "type": "string"}],
        outputs=[{"name": "said", "type": "string"}],
    )


@pytest.fixture
def site(tmp_path: Path, redis: RedisProcess, seaweed: SeaweedProcess) -> Iterator[Site]:
    add_waiter(tmp_path)
    name = f"site-{secrets.token_hex(6)}"
    with postgres().database() as url:
        shared = {
            **seaweed.environment,
            "S3_BUCKET": name,
            "MENTATLAB_REDIS_PREFIX": f"{name}:",
            "MENTATLAB_DATABASE": url,
            "MENTATLAB_LOG": redis.url,
            "MENTATLAB_TOKEN_SECRET": SECRET,
            "MENTATLAB_AGENTS": str(tmp_path / "agents"),
            "MENTATLAB_WEBHOOK_PRIVATE": "true",
        }

        @contextlib.contextmanager
        def server(name: str) -> Generator[Up]:
            with up(tmp_path / name, env=shared) as started:
                yield started

        yield Site(tmp_path, server)


@contextlib.contextmanager
def two(site: Site) -> Generator[tuple[Api, Api]]:
    with (
        site.server("a") as a,
        site.server("b") as b,
        api_of(a) as at_a,
        api_of(b) as at_b,
    ):
        yield at_a, at_b


def begin(server: Api, folder: Path) -> str:
    """A run whose agent works until the file `go` is there."""
    folder.mkdir()
    run_id = server.submit(FLOW, where=str(folder))
    until(lambda: begun(folder) == 1)
    return run_id


def begun(folder: Path) -> int:
    """How often the agent was started."""
    log = folder / "begun"
    return len(log.read_text()) if log.exists() else 0


def until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Of foreign processes, which tell nobody."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def told(server: Api, run_id: str) -> str:
    """The whole stream of the run's events, to its end."""
    return server.http.get(f"/api/v1/runs/{run_id}/events").raise_for_status().text


def test_who_takes_over_from_a_killed_server_ends_its_runs(site: Site) -> None:
    work = site.folder / "work"
    with two(site) as (a, b):
        run_id = begin(a, work)
        a.server.stop(signal.SIGKILL)
        until(lambda: begun(work) == 2)
        (work / "go").touch()
        assert b.ended(run_id)["state"] == "succeeded"
        assert b.outputs(run_id) == {"out.text": "done"}


def test_a_stopped_owner_that_wakes_up_is_fenced(site: Site) -> None:
    work = site.folder / "work"
    with two(site) as (a, b):
        run_id = begin(a, work)
        a.server.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: begun(work) == 2)
            (work / "go").touch()
            assert b.ended(run_id)["state"] == "succeeded"
            events = told(b, run_id)
        finally:
            a.server.process.send_signal(signal.SIGCONT)
        until(lambda: "another owner" in a.server.log())
        assert a.look(run_id)["state"] == "succeeded"
        assert told(a, run_id) == told(b, run_id) == events


def test_any_server_cancels_and_follows_a_run(site: Site) -> None:
    with two(site) as (a, b):
        run_id = begin(a, site.folder / "work")
        assert b.look(run_id)["state"] == "running"
        assert b.post(f"runs/{run_id}/cancel", {}).status_code < 300
        assert b.ended(run_id)["state"] == a.ended(run_id)["state"] == "cancelled"


def test_a_server_that_keeps_things_to_itself_is_refused_beside_another(tmp_path: Path) -> None:
    with postgres().database() as url:
        env = {"MENTATLAB_DATABASE": url}
        with up(tmp_path / "first", env=env):
            refused = mentatlab("up", "--port", "0", home=tmp_path / "second", env=env)
        assert refused.returncode != 0
        assert "DATABASE_IN_USE" in refused.stderr
        with up(tmp_path / "second", env=env):
            pass  # the first has gone


def test_runs_go_on_when_postgres_is_back(tmp_path: Path) -> None:
    add_waiter(tmp_path)
    with postgres_server() as database:
        env = {"MENTATLAB_DATABASE": database.url(), "MENTATLAB_AGENTS": str(tmp_path / "agents")}
        with up(tmp_path / "home", env=env) as server, api_of(server) as api:
            work = tmp_path / "work"
            run_id = begin(api, work)
            database.stop()
            (work / "go").touch()
            until(lambda: f"{run_id} cannot go on" in server.log())
            database.start()
            until(lambda: begun(work) == 2)
            assert api.ended(run_id)["state"] == "succeeded"


def test_ends_are_told_once_by_all_and_by_who_is_left(site: Site) -> None:
    folder = site.folder / "work"
    folder.mkdir()
    (folder / "go").touch()
    hangs = threading.Event()
    with receiving() as receiver, two(site) as (a, b):
        a.post("subscriptions", {"url": receiver.url}).raise_for_status()
        runs = [server.submit(FLOW, where=str(folder)) for server in (a, b) * 4]
        calls = [receiver.next_call() for _ in runs]
        assert {json.loads(call.body)["run"]["run_id"] for call in calls} == {*runs}
        receiver.answers.put(hangs)
        last = b.submit(FLOW, where=str(folder))
        under_way = receiver.next_call()
        a.server.stop(signal.SIGKILL)  # with the delivery, or beside it
        again = receiver.next_call()
        hangs.set()
        assert json.loads(again.body)["run"]["run_id"] == last
        assert (again.delivery, again.body) == (under_way.delivery, under_way.body)
        assert receiver.calls.empty()
