"""`mentatlab storage` `usage gc scrub rebuild migrate`, and `runs rm`."""

import json
from pathlib import Path

import pytest
from tests.cli.test_commands import Command, data
from tests.cli.test_commands import home as home
from tests.cli.test_commands import mentatlab as mentatlab
from tests.support.postgres import postgres

from mentatlab.home import locked


@pytest.fixture
def ref(mentatlab: Command, tmp_path: Path) -> str:
    file = tmp_path / "a.bin"
    file.write_bytes(b"hello" * 1000)
    return mentatlab("storage", "put", file).stdout.strip()


def file_of(home: Path, ref: str) -> Path:
    (path,) = (home / "blobs").rglob(f"{ref}.bin")
    return path


def test_usage(mentatlab: Command, ref: str):
    assert data(mentatlab("storage", "usage", "--json"))["bytes"] == 5000
    assert "bytes  5000    0         no bound" in mentatlab("storage", "usage").stdout


def test_gc(mentatlab: Command, home: Path, ref: str):
    assert data(mentatlab("storage", "gc", "--json"))["orphans"] == 0
    file_of(home, ref).unlink()
    said = mentatlab("storage", "gc")
    assert said.stdout.startswith("removed 0 blobs, 0 objects")
    listed = mentatlab("storage", "ls").stdout
    assert "corrupt" in listed


def test_scrub(mentatlab: Command, home: Path, ref: str):
    assert mentatlab("storage", "scrub").stdout.startswith("1 blobs, 5000 bytes read: 0 corrupt")
    path = file_of(home, ref)
    path.chmod(0o600)
    path.write_bytes(b"world" * 1000)
    said = mentatlab("storage", "scrub", code=1)
    assert f"corrupt: {ref}" in said.stderr
    assert "hint: " in said.stderr
    report = json.loads(mentatlab("storage", "scrub", "--json", code=1).stdout)
    assert report["corrupt"] == [ref]


def test_rebuild(mentatlab: Command, home: Path, ref: str):
    mentatlab("storage", "gc")
    for name in home.glob("catalog.db*"):
        name.unlink()
    told = mentatlab("storage", "gc")
    assert "`mentatlab storage rebuild`" in told.stderr
    assert mentatlab("storage", "ls").stdout == ""
    assert mentatlab("storage", "rebuild").stdout == "entered 1 blobs; 0 were known\n"
    assert data(mentatlab("storage", "rebuild", "--json"))["known"] == 1
    assert mentatlab("storage", "get", ref).stdout == "hello" * 1000
    assert "another catalogue" not in mentatlab("storage", "gc").stderr


def test_migrate(mentatlab: Command, home: Path, ref: str, tmp_path: Path):
    target = tmp_path / "target"
    said = mentatlab("storage", "migrate", "--from", "local", "--to", "local", target)
    assert said.stdout == "1 blobs, 5000 bytes; 1 copied now\n"
    assert "take the place of" in said.stderr
    again = mentatlab("storage", "migrate", "--from", "local", "--to", "local", target, "--json")
    assert (data(again)["done"], data(again)["copied"]) == (1, 0)
    (home / "blobs").rename(tmp_path / "old")
    target.rename(home / "blobs")
    assert mentatlab("storage", "get", ref).stdout == "hello" * 1000
    wrong = mentatlab("storage", "migrate", "--to", "s3", target, code=2).stderr
    assert "FOLDER goes with --to local" in wrong


def test_the_catalogue_in_a_database(
    mentatlab: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (file := tmp_path / "a.bin").write_bytes(b"hello" * 1000)
    to = ("--from", "local", "--to", "local", tmp_path / "target")
    with postgres().database() as url:
        monkeypatch.setenv("MENTATLAB_DATABASE", url)
        mentatlab("storage", "put", file)
        assert mentatlab("storage", "rebuild").stdout == "entered 0 blobs; 1 were known\n"
        moved = mentatlab("storage", "migrate", *to)
        assert moved.stdout == "1 blobs, 5000 bytes; 1 copied now\n"
    assert not (home / "catalog.db").exists()


@pytest.mark.parametrize("command", [["rebuild"], ["migrate", "--to", "s3"]])
def test_not_beside_a_server(mentatlab: Command, home: Path, ref: str, command: list[str]):
    with locked(home):
        refused = mentatlab("storage", *command, code=1).stderr
    assert "HOME_IN_USE" in refused
    assert "hint: stop that server first" in refused


def test_without_a_bucket_there_is_nothing_to_move_to(mentatlab: Command, ref: str):
    refused = mentatlab("storage", "migrate", "--to", "s3", code=1).stderr
    assert "S3_ACCESS_KEY" in refused


def test_a_run_is_deleted(mentatlab: Command):
    unknown = mentatlab("runs", "rm", "rn_unknown", code=1).stderr
    assert "RUN_NOT_FOUND" in unknown
