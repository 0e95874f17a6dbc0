"""`mentatlab up` as a user starts it, called with plain HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO, ECHO_FLOW, write_agent
from tests.support.server import COMMAND, environment, mentatlab, up

WAIT_FLOW = ECHO_FLOW.replace("test.echo", "test.wait").replace("t.echo", "t.wait")
WAIT_MAIN = """\
import os, pathlib, sys, time
sys.stdin.readline()
pathlib.Path(os.environ["MENTAT_OUT"]).mkdir(parents=True, exist_ok=True)
print('{"type": "log", "message": "pid %d"}' % os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    write_agent(tmp_path / "agents" / "echo")
    write_agent(tmp_path / "agents" / "wait", ECHO.replace("test.echo", "test.wait"), WAIT_MAIN)
    return tmp_path / "agents"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def submit(url: str, flow: str, **inputs: Any) -> str:
    answer = httpx2.post(f"{url}/api/v1/runs", json={"flow": flow, "inputs": inputs})
    assert answer.status_code == 201, answer.text
    return answer.json()["run_id"]


def wait_for_log(url: str, run_id: str, node: str) -> str:
    """The first log message of a node: its agent has begun."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        logs = httpx2.get(f"{url}/api/v1/runs/{run_id}/nodes/{node}/logs").json()["logs"]
        if messages := [entry["message"] for entry in logs if "message" in entry]:
            return messages[0]
        time.sleep(0.05)
    raise AssertionError("the agent did not begin")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_a_run_with_plain_tools(agents: Path, home: Path):
    with up(home, "--agents", agents) as server:
        run_id = submit(server.url, ECHO_FLOW, words="hello")
        curl = subprocess.run(
            ["curl", "-sN", f"{server.url}/api/v1/runs/{run_id}/events"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "event: run_finished" in curl.stdout
        outputs = httpx2.get(f"{server.url}/api/v1/runs/{run_id}/outputs").json()
        assert outputs["outputs"] == {"out.text": "hello"}
        assert server.stop() == 0


def test_an_agent_that_cannot_be_used_is_told_at_the_start(agents: Path, home: Path):
    write_agent(agents / "wrong", ECHO.replace("version: 1.0.0", "version: one"))
    with up(home, "--agents", agents) as server:
        assert f"not usable: {agents / 'wrong'}: MANIFEST_INVALID" in server.log()
        assert submit(server.url, ECHO_FLOW, words="the others are")


def test_old_manifests_and_old_flows_run(agents: Path, home: Path):
    old = ECHO.replace("test.echo", "old.echo") + "env: [GREETING=hi, {name: A, value: b}]\n"
    old += "longRunning: false\nui: {remoteEntry: http://x/remoteEntry.js}\n"
    write_agent(agents / "old", old)
    flow = ECHO_FLOW.replace("v1beta1", "v1alpha1").replace("test.echo", "old.echo")
    with up(home, "--agents", agents) as server:
        run_id = submit(server.url, flow, words="still here")
        text = httpx2.get(f"{server.url}/api/v1/runs/{run_id}/events").text
        assert '"state":"succeeded"' in text


def test_what_the_server_leaves_in_its_home(agents: Path, home: Path):
    with up(home, "--agents", agents) as server:
        told = json.loads((home / "server.json").read_text())
        assert told["pid"] == server.process.pid
        assert server.url == told["url"] == f"http://127.0.0.1:{told['port']}"
        assert (home / "key").stat().st_mode & 0o777 == 0o600
        server.stop()
    assert not (home / "server.json").exists()
    assert {"runs.db", "streams.db", "catalog.db", "blobs", "key", "lock"} <= {
        path.name for path in home.iterdir()
    }


def test_a_second_server_on_the_same_home_is_refused(home: Path):
    with up(home) as server:
        second = mentatlab("up", "--port", "0", home=home)
        assert second.returncode == 1
        assert "HOME_IN_USE" in second.stderr
        assert str(server.process.pid) in second.stderr
        assert server.url in second.stderr
        assert "hint:" in second.stderr


def test_a_port_in_use_is_told(home: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = mentatlab("up", "--port", port, "--json", home=home)
    assert answer.returncode == 1
    error = json.loads(answer.stderr)["error"]
    assert error["code"] == "PORT_IN_USE"
    assert port in error["message"]
    assert answer.stdout == ""


def test_the_network_needs_keys(home: Path):
    refused = mentatlab("up", "--host", "0.0.0.0", "--port", "0", home=home)
    assert refused.returncode == 1
    assert "KEYS_REQUIRED" in refused.stderr
    made = mentatlab("keys", "add", "--name", "me", "--scope", "read", home=home)
    key = made.stdout.strip()
    with up(home, "--host", "0.0.0.0") as server:
        runs = f"{server.url}/api/v1/runs"
        assert httpx2.get(runs).status_code == 401
        assert httpx2.get(runs, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert httpx2.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize("setting", ["MENTATLAB_PORT=70700", "ENABLE_STREAMING=maybe"])
def test_a_wrong_setting_is_named(home: Path, setting: str):
    name, _, value = setting.partition("=")
    answer = mentatlab("up", home=home, env={name: value})
    assert answer.returncode == 1
    assert "BAD_SETTING" in answer.stderr
    assert name in answer.stderr


def test_foreign_hosts_and_pages_are_refused(home: Path):
    with up(home) as server:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            answer = httpx2.get(f"{server.url}/api/v1/runs", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN_HOST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, b"403"),
        ({"Host": "evil.example"}, b"403"),
        ({"Authorization": "Bearer nonsense"}, b"401"),
    ],
)
def test_the_same_on_websockets(home: Path, headers: dict[str, str], status: bytes):
    with up(home) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        fields = {
            "Host": f"{host}:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **headers,
        }
        lines = ["GET /ws/streams/st_1 HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            assert status in raw.recv(4096).splitlines()[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_leaves_no_agent_and_no_run_is_lost(agents: Path, home: Path, number: int):
    with up(home, "--agents", agents) as server:
        run_id = submit(server.url, WAIT_FLOW, words="x")
        pid = int(wait_for_log(server.url, run_id, "echo").removeprefix("pid "))
        with httpx2.stream("GET", f"{server.url}/api/v1/runs/{run_id}/events") as follower:
            assert follower.status_code == 200
            assert server.stop(number) == 0
        assert gone(pid)
    with up(home, "--agents", agents) as server:
        run = httpx2.get(f"{server.url}/api/v1/runs/{run_id}").json()
        assert run["state"] == "running"
        wait_for_log(server.url, run_id, "echo")
        httpx2.post(f"{server.url}/api/v1/runs/{run_id}/cancel")
        assert '"state":"cancelled"' in httpx2.get(f"{server.url}/api/v1/runs/{run_id}/events").text


def test_ctrl_c_leaves_the_run_to_the_server(agents: Path, home: Path, tmp_path: Path):
    (tmp_path / "wait.mlab").write_text(WAIT_FLOW)
    interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with up(home, "--agents", agents) as server:
        command = [sys.executable, "-c", f"{interruptible}; {COMMAND[-1]}"]
        with subprocess.Popen(
            [*command, "run", str(tmp_path / "wait.mlab"), "-i", "words=x"],
            env=environment(home),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr
            run_id = process.stderr.readline().removeprefix("run ").strip()
            wait_for_log(server.url, run_id, "echo")
            process.send_signal(signal.SIGINT)
            assert f"`mentatlab runs cancel {run_id}` does that" in process.stderr.read()
            assert process.wait(20) == 1
        assert httpx2.get(f"{server.url}/api/v1/runs/{run_id}").json()["state"] == "running"


def test_a_killed_server_starts_again_and_goes_on(agents: Path, home: Path):
    with up(home, "--agents", agents) as server:
        done = submit(server.url, ECHO_FLOW, words="kept")
        httpx2.get(f"{server.url}/api/v1/runs/{done}/events")
        run_id = submit(server.url, WAIT_FLOW, words="x")
        pid = int(wait_for_log(server.url, run_id, "echo").removeprefix("pid "))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert (home / "server.json").exists()
    with up(home, "--agents", agents) as server:
        assert gone(pid)
        outputs = httpx2.get(f"{server.url}/api/v1/runs/{done}/outputs").json()
        assert outputs["outputs"] == {"out.text": "kept"}
        again = wait_for_log(server.url, run_id, "echo")
        assert again != f"pid {pid}"
        httpx2.post(f"{server.url}/api/v1/runs/{run_id}/cancel")


def test_a_small_idle_server(home: Path):
    """Bar of the design; what decodes media must not be loaded here."""
    with up(home) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        kib = int(status.partition("VmRSS:")[2].split()[0])
        assert kib < 150 * 1024
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "_imaging" not in maps
        assert "libavcodec" not in maps


def test_errors_are_text_for_people(home: Path):
    (home.parent / "file").write_text("")
    answer = mentatlab("up", "--home", home.parent / "file" / "home", home=home)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: BAD_SETTING: ")
    assert "Traceback" not in answer.stderr


def test_the_first_line_says_where(home: Path):
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        url = line.split()[-1]
        assert httpx2.get(f"{url}/readyz").status_code == 200
        process.terminate()
        assert "stopping" in process.stderr.read()
    assert process.returncode == 0


def test_rate_limits_hold_for_keys(home: Path):
    with up(home, env={"MENTATLAB_RATE": "1", "MENTATLAB_BURST": "2"}) as server:
        headers = {"Authorization": f"Bearer {server.key}"}
        answers = [httpx2.get(f"{server.url}/api/v1/runs", headers=headers) for _ in range(6)]
        limited = [a for a in answers if a.status_code == 429]
        assert limited
        assert limited[0].json()["code"] == "RATE_LIMITED"
        assert int(limited[0].headers["retry-after"]) >= 1
