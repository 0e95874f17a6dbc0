"""`mentatlab streams` as foreign processes beside a running server."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.server import COMMAND, Up, environment, mentatlab, up


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("home")) as server:
        yield server


def start(server: Up, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "streams", *arguments],
        env=environment(server.home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_lines_are_published_as_they_are_said(server: Up) -> None:
    with start(server, "publish", "--producer", "talker") as talker:
        stream_id = next_line(talker)
        with start(server, "tail", stream_id) as reader:
            for word in ("one", "two"):
                say(talker, word)
                assert next_line(reader) == word
            talker.send_signal(signal.SIGINT)  # stdin is still open
            assert talker.wait(20) == 1
            resumed = mentatlab(
                *("streams", "publish", "--producer", "talker"),
                home=server.home,
                stdin="one\ntwo\nthree\n",
            )
            assert resumed.stdout.strip() == stream_id
            assert "3 records published, 2 of them before" in resumed.stderr
            assert next_line(reader) == "three"
            assert reader.wait(20) == 0


def test_a_file_and_nothing_as_stdin(server: Up, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb\n")
    for path in (tmp_path / "lines", Path("/dev/null")):
        with path.open() as stdin:
            answer = subprocess.run(
                [*COMMAND, "streams", "publish"],
                env=environment(server.home),
                stdin=stdin,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        tail = mentatlab("streams", "tail", answer.stdout.strip(), home=server.home)
        assert tail.stdout == path.read_text()


def test_replay_keeps_the_recorded_pace(server: Up) -> None:
    """What was said 0.3 s apart is replayed so: the second record is not there with the first."""
    with start(server, "publish") as talker:
        stream_id = next_line(talker)
        with start(server, "tail", stream_id) as reader:
            say(talker, "early")
            assert next_line(reader) == "early"
            with pytest.raises(subprocess.TimeoutExpired):
                talker.wait(0.3)
            say(talker, "late")
            talker.communicate(timeout=20)
            assert next_line(reader) == "late"
    slow = ("replay", stream_id, "--from", "2", "--json", "--rate", "0.001")
    with start(server, *slow) as replay:
        assert json.loads(next_line(replay))["payload"]["data"] == "early"
        with pytest.raises(subprocess.TimeoutExpired):
            replay.wait(1)  # the next one would come after minutes
        replay.send_signal(signal.SIGINT)
        assert replay.communicate(timeout=20)[0] == ""
    fast = mentatlab("streams", "replay", stream_id, home=server.home)
    assert fast.stdout == "early\nlate\n"


def test_a_cancelled_stream_is_not_whole(server: Up) -> None:
    with start(server, "publish") as talker:
        stream_id = next_line(talker)
        say(talker, "so far")
        with start(server, "tail", stream_id) as reader:
            assert next_line(reader) == "so far"
            cancel = f"{server.url}/api/v1/streams/{stream_id}/cancel"
            subprocess.run(["curl", "-sS", "-X", "POST", cancel], check=True, capture_output=True)
            _, errors = reader.communicate(timeout=20)
            assert reader.returncode == 1
            assert "STREAM_TRUNCATED: the stream ended: cancelled" in errors
            assert "hint:" in errors
        _, errors = talker.communicate("too late\n", timeout=20)
        assert talker.returncode == 1
        assert "STREAM_ENDED" in errors
