"""`mentatlab streams` in this process: each command brings its own server on one home."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mentatlab.cli.root import cli

Command = Callable[..., Result]


@pytest.fixture
def streams(tmp_path: Path) -> Command:
    def run(*arguments: str | Path, code: int = 0) -> Result:
        home = {"MENTATLAB_HOME": str(tmp_path / "home")}
        answer = CliRunner().invoke(cli, ["streams", *map(str, arguments)], env=home)
        assert answer.exit_code == code, f"{answer.output}\n{answer.exception!r}"
        return answer

    return run


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "lines"
    file.write_text('some text\r\n{"a": [1]}\n7\nlast')
    return file


def records(answer: Result) -> list[Any]:
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_lines_there_and_back(streams: Command, lines: Path):
    published = streams("publish", "--file", lines)
    assert "4 records published" in published.stderr
    stream_id = published.stdout.strip()
    assert streams("tail", stream_id).stdout == 'some text\n{"a":[1]}\n7\nlast\n'
    assert streams("tail", stream_id, "--from", "-3").stdout == "7\nlast\n"
    told = records(streams("tail", stream_id, "--json"))
    assert [record["payload"]["data"] for record in told] == ["some text", {"a": [1]}, 7, "last"]
    again = streams("replay", stream_id, "--rate", "1000", "--from", "4", "--json")
    assert records(again) == told[2:]


def test_the_same_producer_goes_on(streams: Command, lines: Path):
    first = streams("publish", "--file", lines, "--producer", "me", "--open", "--json")
    (told,) = records(first)
    with lines.open("a") as file:
        file.write("\nmore")
    second = streams("publish", "--file", lines, "--producer", "me")
    assert second.stdout.strip() == told["stream_id"]
    assert "5 records published, 4 of them before" in second.stderr
    assert streams("tail", told["stream_id"]).stdout.splitlines()[-1] == "more"
    third = streams("publish", "--file", lines, "--producer", "me")
    assert "all of it was published before" in third.stderr
    with lines.open("a") as file:
        file.write("\nlate")
    late = streams("publish", "--file", lines, "--producer", "me", code=1)
    assert "STREAM_ENDED" in late.stderr
    assert "another --producer" in late.stderr
    other = streams("publish", told["stream_id"], "--file", lines, code=1)
    assert "STREAM_ENDED" in other.stderr
    assert "hint:" in other.stderr


def test_bytes_there_and_back(streams: Command, tmp_path: Path):
    file, out = tmp_path / "data.png", tmp_path / "out"
    file.write_bytes(bytes(range(256)) * 10)
    stream_id = streams("publish", "--binary", file, "--chunk", "1KB").stdout.strip()
    shown = streams("tail", stream_id).stdout.splitlines()
    assert shown == ["2: 1000 bytes", "3: 1000 bytes", "4: 560 bytes"]
    told = records(streams("tail", stream_id, "--raw", out, "--json"))
    assert [(r.get("key"), r.get("index"), r.get("end_of_item")) for r in told] == [
        (True, None, None),
        (None, 1, None),
        (None, 2, True),
    ]
    paths = [Path(record["payload"]["bytes"]["path"]) for record in told]
    assert [path.suffix for path in paths] == [".png"] * 3
    assert b"".join(path.read_bytes() for path in paths) == file.read_bytes()
    assert [record["payload"]["bytes"]["size"] for record in told] == [1000, 1000, 560]


def test_an_empty_file_is_an_empty_stream(streams: Command, tmp_path: Path):
    (tmp_path / "empty").write_bytes(b"")
    for option in ("--file", "--binary"):
        stream_id = streams("publish", option, tmp_path / "empty").stdout.strip()
        assert streams("tail", stream_id).stdout == ""


def test_what_cannot_be_published(streams: Command, lines: Path, tmp_path: Path):
    both = streams("publish", "--file", lines, "--binary", lines, code=2)
    assert "not both" in both.stderr
    for size in ("2MiB", "0B", "much"):
        assert "--chunk" in streams("publish", "--binary", lines, "--chunk", size, code=2).stderr
    (tmp_path / "raw").write_bytes(b"\xff\xfe\n")
    raw = streams("publish", "--file", tmp_path / "raw", code=1)
    assert "give a file of bytes with --binary" in raw.stderr
    (tmp_path / "long").write_bytes(b"x" * ((1 << 20) + 1))
    long = streams("publish", "--file", tmp_path / "long", code=1)
    assert "STREAM_RECORD_TOO_LARGE" in long.stderr


def test_what_is_not_there_is_told_with_a_hint(streams: Command):
    for command in ("tail", "replay", "publish"):
        answer = streams(command, "st_nobody", "--json", code=1)
        error = json.loads(answer.stderr)["error"]
        assert error["code"] == "STREAM_UNKNOWN"
        assert error["hint"]


def test_a_place_that_is_none(streams: Command, lines: Path):
    stream_id = streams("publish", "--file", lines).stdout.strip()
    answer = streams("tail", stream_id, "--from", "yesterday", code=1)
    assert "STREAM_CURSOR_INVALID" in answer.stderr
    assert "hint:" in answer.stderr
