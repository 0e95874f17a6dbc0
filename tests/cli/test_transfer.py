"""`mentatlab storage put` and `get`, each with a server of its own."""

import io
import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.cli.test_commands import Command, data
from tests.cli.test_commands import home as home
from tests.cli.test_commands import mentatlab as mentatlab
from tests.support.media import picture

from mentatlab.cli import progress
from mentatlab.cli.root import cli
from mentatlab.cli.unfinished import Unfinished

LARGE = bytes(range(251)) * 40_000  # 10 MB


PHOTO = picture("JPEG")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_several_files_in_and_out(mentatlab: Command, file: Path, tmp_path: Path):
    small, out = tmp_path / "small.txt", tmp_path / "out"
    small.write_text("hello")
    out.mkdir()
    refs = mentatlab("storage", "put", file, small, small).stdout.split()
    assert len(refs) == 3
    mentatlab("storage", "get", *refs, "-o", out)
    assert names(out) == {"large.bin", "small.txt", f"{refs[2]}-small.txt"}
    assert (out / "large.bin").read_bytes() == LARGE
    assert (out / "small.txt").read_text() == "hello"
    wrong = mentatlab("storage", "get", *refs, code=1).stderr
    assert "hint: give an existing folder: -o FOLDER" in wrong
    mentatlab("storage", "get", refs[0], "-o", tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == LARGE


def test_stdin(home: Path, mentatlab: Command, tmp_path: Path):
    answer = CliRunner().invoke(
        cli,
        ["storage", "put", "-", "--name", "a/../piped.bin", "--json"],
        env={"MENTATLAB_HOME": str(home)},
        input=LARGE,
    )
    assert answer.exit_code == 0, repr(answer.exception)
    ref = json.loads(answer.stdout)["ref"]
    mentatlab("storage", "get", ref, "-o", tmp_path)
    assert (tmp_path / "piped.bin").read_bytes() == LARGE


def test_a_medium_without_a_name(home: Path, mentatlab: Command, tmp_path: Path):
    answer = CliRunner().invoke(
        cli,
        ["storage", "put", "-", "--type", "image"],
        env={"MENTATLAB_HOME": str(home)},
        input=PHOTO,
    )
    ref = answer.stdout.strip()
    mentatlab("storage", "get", ref, "-o", tmp_path)
    assert (tmp_path / f"{ref}.jpg").read_bytes() == PHOTO


def test_wishes(mentatlab: Command, file: Path):
    assert "MEDIA_TYPE_MISMATCH" in mentatlab("storage", "put", file, "--type=image", code=1).stderr
    mentatlab("storage", "put", file, "--ttl=ephemeral")
    (item,) = data(mentatlab("storage", "ls", "--json"))["items"]
    assert item["expires_at"] - item["created_at"] == pytest.approx(3600, abs=60)


def test_nothing_is_remembered_of_what_is_done(home: Path, mentatlab: Command, file: Path):
    mentatlab("storage", "put", file)
    assert names(home / "uploads") == set()


def test_what_is_gone_is_begun_anew(home: Path, mentatlab: Command, file: Path):
    unfinished = Unfinished(home / "uploads", "")
    key = unfinished.key_of(file, [None, None, None])
    unfinished.remember(key, "up_01JABCDEFGHJKMNPQRSTVWXYZ0")
    told = mentatlab("storage", "put", "--resume", file)
    assert "what was begun is gone" in told.stderr
    assert told.stdout.startswith("blob_")
    assert unfinished.find(key) is None


def test_a_file_that_has_changed_is_another(tmp_path: Path, file: Path):
    unfinished = Unfinished(tmp_path / "uploads", "")
    key = unfinished.key_of(file, [])
    assert key == unfinished.key_of(file, [])
    assert key != unfinished.key_of(file, ["image"])
    assert key != Unfinished(tmp_path / "uploads", "http://elsewhere").key_of(file, [])
    file.write_bytes(LARGE[:-1])
    assert key != unfinished.key_of(file, [])


def test_old_ones_are_forgotten(tmp_path: Path):
    unfinished = Unfinished(tmp_path / "uploads", "")
    unfinished.remember("old", "up_1")
    os.utime(tmp_path / "uploads" / "old", (0, 0))
    unfinished.remember("new", "up_2")
    assert (unfinished.find("old"), unfinished.find("new")) == (None, "up_2")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_for_eyes(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with progress.bar("cat.jpg") as tell:
        tell(50, 100)
        tell(70, None)
        tell(100, 100)
    shown = click.unstyle(terminal.getvalue())
    assert "cat.jpg" in shown
    assert "100%" in shown
