"""Every command in this process: without a running server each brings its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.e2e.test_cli import COPY, COPY_FLOW, COPY_MAIN, SPEAK, SPEAK_FLOW, SPEAK_MAIN
from tests.gateway.conftest import ECHO, ECHO_FLOW, write_agent

from mentatlab.cli.keys import ROLES
from mentatlab.cli.root import cli
from mentatlab.cli.webhooks import EVENTS
from mentatlab.flows import webhooks
from mentatlab.gateway import identity

Command = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    agents = tmp_path / "home" / "agents"
    write_agent(agents / "echo")
    write_agent(agents / "copy", COPY, COPY_MAIN)
    write_agent(agents / "speak", SPEAK, SPEAK_MAIN)
    write_agent(
        agents / "fail", ECHO.replace("test.echo", "test.fail"), "import sys\nsys.exit('broken')\n"
    )
    return tmp_path / "home"


@pytest.fixture
def mentatlab(home: Path) -> Command:
    def run(*arguments: str | Path, code: int = 0) -> Result:
        answer = CliRunner().invoke(
            cli, [str(argument) for argument in arguments], env={"MENTATLAB_HOME": str(home)}
        )
        assert answer.exit_code == code, f"{answer.output}\n{answer.exception!r}"
        return answer

    return run


def data(answer: Result) -> Any:
    return json.loads(answer.stdout)


@pytest.fixture
def flow(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "flow.mlab"
        path.write_text(text)
        return path

    return write


def test_run_and_look_at_the_run(mentatlab: Command, flow: Callable[[str], Path]):
    told = data(mentatlab("run", flow(ECHO_FLOW), "-i", "words=hi", "--json"))
    assert told["outputs"] == {"out.text": "hi"}
    assert mentatlab("run", flow(ECHO_FLOW), "-i", "words=hi").stdout == "out.text: hi\n"
    listed = mentatlab("runs", "ls")
    assert told["run_id"] in listed.stdout
    shown = mentatlab("runs", "show", told["run_id"]).stdout
    assert "succeeded" in shown
    assert "output out.text: hi" in shown
    watched = mentatlab("runs", "watch", told["run_id"])
    assert watched.stdout.splitlines()[-1] == "run succeeded"
    lines = mentatlab("runs", "watch", told["run_id"], "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    mentatlab("runs", "logs", told["run_id"], "echo")
    unknown = mentatlab("runs", "logs", told["run_id"], "nobody", code=1)
    assert "has no node nobody" in unknown.stderr
    assert "its nodes are words, echo, out" in unknown.stderr
    over = mentatlab("runs", "cancel", told["run_id"], code=1)
    assert "RUN_TERMINAL" in over.stderr


def test_a_failed_run_says_why(mentatlab: Command, flow: Callable[[str], Path]):
    answer = mentatlab(
        "run", flow(ECHO_FLOW.replace("test.echo", "test.fail")), "-i", "words=x", code=1
    )
    assert "error: echo: AGENT_EXIT" in answer.stderr
    assert "echo | broken" in answer.stderr
    listed = data(mentatlab("runs", "ls", "--state", "failed", "--json"))["runs"]
    watched = mentatlab("runs", "watch", listed[0]["run_id"], code=1)
    assert "run failed" in watched.stdout
    assert "AGENT_EXIT" in mentatlab("runs", "show", listed[0]["run_id"]).stdout


def test_streams(mentatlab: Command, flow: Callable[[str], Path]):
    told = mentatlab("run", flow(SPEAK_FLOW), "-i", "words=one two", "--json")
    assert "echo.words: one two" in told.stderr
    (value,) = data(told)["outputs"].values()
    assert mentatlab("streams", "tail", value["stream_id"]).stdout == "one \ntwo \n"
    shown = mentatlab("runs", "show", data(told)["run_id"]).stdout
    assert f": 2 elements in {value['stream_id']}" in shown
    lines = mentatlab("streams", "tail", value["stream_id"], "--json").stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [2, 3]


def test_media(mentatlab: Command, flow: Callable[[str], Path], tmp_path: Path):
    file, out = tmp_path / "data.bin", tmp_path / "out"
    file.write_bytes(b"\x00\x01\x02" * 100)
    told = data(mentatlab("run", flow(COPY_FLOW), "-i", f"copy={file}", "-o", out, "--json"))
    (written,) = told["files"].values()
    assert Path(written).read_bytes() == file.read_bytes()

    ref = mentatlab("storage", "put", file).stdout.strip()
    assert mentatlab("storage", "get", ref).stdout_bytes == file.read_bytes()
    assert ref in mentatlab("storage", "ls").stdout
    assert mentatlab("storage", "rm", ref).stdout == f"removed {ref}\n"
    assert "REFERENCE_NOT_FOUND" in mentatlab("storage", "get", ref, code=1).stderr


def test_a_download_that_fails_leaves_what_was_there(mentatlab: Command, tmp_path: Path):
    file, copy = tmp_path / "data.bin", tmp_path / "copy.bin"
    file.write_bytes(b"\x00\x01")
    copy.write_text("mine")
    ref = mentatlab("storage", "put", file).stdout.strip()
    other = ref[:-4] + ("0000" if ref[-4:] != "0000" else "1111")
    assert "REFERENCE_NOT_FOUND" in mentatlab("storage", "get", other, "-o", copy, code=1).stderr
    assert copy.read_text() == "mine"
    mentatlab("storage", "get", ref, "-o", copy)
    assert copy.read_bytes() == file.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"data.bin", "copy.bin", "home"}
    mentatlab("storage", "get", ref, "-o", "/dev/null")
    assert not Path("/dev/null").is_file()


def test_files_that_cannot_be_used_are_named(
    mentatlab: Command, flow: Callable[[str], Path], tmp_path: Path
):
    picture, taken = tmp_path / "cat.jpg", tmp_path / "taken"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    taken.write_text("")
    for answer in (
        mentatlab("validate", picture, code=1),
        mentatlab("run", flow(ECHO_FLOW), "-i", f"words=@{picture}", code=1),
    ):
        assert f"INVALID_REQUEST: {picture} is not a text file" in answer.stderr
    out = mentatlab("run", flow(ECHO_FLOW), "-i", "words=a", "-o", taken / "out", code=1)
    assert f"INVALID_REQUEST: {taken / 'out'}: Not a directory" in out.stderr


def test_flows(mentatlab: Command, flow: Callable[[str], Path]):
    assert "is valid" in mentatlab("validate", flow(ECHO_FLOW)).stdout
    plan = mentatlab("plan", flow(ECHO_FLOW)).stdout
    assert "text <- words.text (value of string)" in plan
    wrong = mentatlab("validate", flow(ECHO_FLOW.replace("test.echo", "nobody")), code=1)
    assert "UNKNOWN_AGENT" in wrong.stderr


def test_agents(mentatlab: Command, home: Path, tmp_path: Path):
    listed = mentatlab("agents", "ls")
    assert "test.echo" in listed.stdout
    assert "none runs" in mentatlab("doctor").stdout
    assert "inputs:\n  text: string" in mentatlab("agents", "show", "test.echo").stdout
    (home / "agents" / "broken").mkdir()
    (home / "agents" / "broken" / "manifest.yaml").write_text("id: x")
    assert "not usable" in mentatlab("agents", "ls").stderr

    folder = mentatlab("agent", "new", "shout", "--dir", tmp_path).stdout.strip()
    assert mentatlab("agent", "run", folder, "-i", "text=a").stdout == "agent.loud: A\n"
    main = Path(folder) / "src" / "main.py"
    main.write_text(main.read_text().replace('"loud"', '"lout"'))
    misspelt = mentatlab("agent", "run", folder, "-i", "text=a", code=1)
    assert "OUTPUT_MISSING" in misspelt.stderr
    assert mentatlab("agents", "add", folder).stdout == "my.shout:0.1.0\n"
    assert "CONFLICT" in mentatlab("agent", "new", "shout", "--dir", tmp_path, code=1).stderr
    assert "INVALID_REQUEST" in mentatlab("agent", "new", "9", "--dir", tmp_path, code=1).stderr


NOISY = """\
from mentatlab.sdk import StreamingAgent, run


class Noisy(StreamingAgent):
    def __init__(self):
        self.seen = 0

    async def process(self, inputs):
        print("here I am")
        async for item in inputs["items"]:
            self.seen += len(item)
        if inputs.get("fail"):
            raise ValueError("no more")
        return {"seen": self.seen}


run(Noisy)
"""


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    manifest = """\
id: test.noisy
version: 1.0.0
inputs: [{name: items, type: stream, metadata: {items: string}}]
outputs: [{name: seen, type: number}]
"""
    write_agent(tmp_path / "noisy", manifest, NOISY)
    return tmp_path / "noisy"


def test_an_agent_alone_gets_streams_and_shows_its_log(mentatlab: Command, noisy: Path):
    answer = mentatlab("agent", "run", noisy, "-i", 'items=["ab", "c"]')
    assert answer.stdout == "agent.seen: 3\n"
    assert "agent | here I am" in answer.stderr
    failed = mentatlab("agent", "run", noisy, "-i", "items=[]", "-i", "fail=true", code=1)
    assert 'raise ValueError("no more")' in failed.stderr
    missing = mentatlab("agent", "run", noisy, code=1)
    assert "give it: --input items=" in missing.stderr
    wrong = mentatlab("agent", "run", noisy, "-i", "items=3", code=1)
    assert "a JSON array" in wrong.stderr


def test_media_reach_a_stream_pin(mentatlab: Command, tmp_path: Path):
    manifest = """\
id: test.sizes
version: 1.0.0
inputs: [{name: files, type: stream, metadata: {items: binary}}]
outputs: [{name: sizes, type: json}]
"""
    main = """\
from mentatlab.sdk import StreamingAgent, run


class Sizes(StreamingAgent):
    async def process(self, inputs):
        return {"sizes": [len(await self.download_media(f)) async for f in inputs["files"]]}


run(Sizes)
"""
    write_agent(tmp_path / "sizes", manifest, main)
    for size in (3, 5):
        (tmp_path / f"{size}").write_bytes(b"\x00" * size)
    files = json.dumps([f"{tmp_path}/3", f"{tmp_path}/5"])
    answer = mentatlab("agent", "run", tmp_path / "sizes", "-i", f"files={files}", "--json")
    assert data(answer)["outputs"] == {"agent.sizes": [3, 5]}


def test_a_manifest_is_validated(mentatlab: Command, noisy: Path):
    manifest = noisy / "manifest.yaml"
    assert mentatlab("validate", manifest).stdout == f"{manifest} is valid\n"
    manifest.write_text("id: test.noisy\nversion: one\ninputs: [{name: a, type: imag}]\n")
    wrong = mentatlab("validate", manifest, code=1).stderr
    assert "/version: MANIFEST_INVALID" in wrong
    assert "/inputs/0/type: MANIFEST_INVALID" in wrong
    manifest.write_text("id: test.noisy\nversion: 1.0.0\ninputs: [{name: a, type: image}]\n")
    assert "warning: /inputs/0" in mentatlab("validate", manifest).stderr


def test_keys(mentatlab: Command):
    made = data(mentatlab("keys", "add", "--name", "ci", "--scope", "read", "--json"))
    assert made["key"].startswith("ml_")
    assert made["id"] in mentatlab("keys", "ls").stdout
    assert mentatlab("keys", "revoke", made["id"]).stdout == f"revoked {made['id']}\n"
    assert mentatlab("keys", "ls").stdout.strip() == ""


def test_keys_with_a_role(mentatlab: Command):
    assert set(ROLES) == set(identity.ROLES)
    made = data(mentatlab("keys", "add", "--role", "multimodal_consumer", "--json"))
    assert made["scopes"] == ["read"]
    both = ("--role", "multimodal_consumer", "--scope", "run")
    assert "not both" in mentatlab("keys", "add", *both, code=2).stderr


def test_who_is_told_of_runs_ends(mentatlab: Command, monkeypatch: pytest.MonkeyPatch):
    assert webhooks.EVENTS == EVENTS
    refused = mentatlab("webhooks", "subscribe", "http://127.0.0.1:9/hook", code=1)
    assert "WEBHOOK_ADDRESS_REFUSED" in refused.stderr
    monkeypatch.setenv("MENTATLAB_WEBHOOK_PRIVATE", "true")
    asked = ("subscribe", "http://127.0.0.1:9/hook", "--event", "run_failed")
    answer = mentatlab("webhooks", *asked)
    name = answer.stdout.strip()
    assert "whsec_" in answer.stderr
    listed = mentatlab("webhooks", "subscriptions").stdout
    assert all(text in listed for text in (name, "run_failed", "since"))
    assert data(mentatlab("webhooks", "deliveries", "--state", "failed", "--json")) == {
        "deliveries": [],
        "next": None,
    }
    assert mentatlab("webhooks", "unsubscribe", name).stdout == f"removed {name}\n"
    assert "NOT_FOUND" in mentatlab("webhooks", "redeliver", "rn_none", code=1).stderr


def test_the_description_of_the_api(mentatlab: Command):
    assert "/api/v1/runs" in data(mentatlab("openapi"))["paths"]


def test_nobody_answers(mentatlab: Command):
    answer = mentatlab("runs", "ls", "--server", "http://127.0.0.1:9", code=1)
    assert "SERVER_UNREACHABLE" in answer.stderr
