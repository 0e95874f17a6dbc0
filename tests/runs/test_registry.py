from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Invalid, NotFound
from mentatlab.runs.registry import AgentRegistry, semver_key
from mentatlab.runs.schema import SCHEMA
from mentatlab.sqlite import Database
from mentatlab.testing.house import write_agent

PROGRAM = "print('{}')"


async def test_the_highest_version_wins_unless_one_is_named(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1"):
        write_agent(tmp_path, "echo", PROGRAM, version=version)
    registry = AgentRegistry([tmp_path])
    await registry.load()
    assert [a.version for a in registry.list()] == ["1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert registry.get("echo").version == "2.0.0-rc.1"
    assert registry.get("echo:1.9.0").version == "1.9.0"
    assert registry.manifest("echo:3.0.0") is None
    with pytest.raises(NotFound, match="UNKNOWN_AGENT"):
        registry.get("nobody")


async def test_the_program_is_the_entry_file_with_our_interpreter(tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "echo", PROGRAM)
    registry = AgentRegistry([folder], interpreter="/usr/bin/python-of-ours")
    await registry.load()
    program = registry.get("echo").program()
    assert program.command == ("/usr/bin/python-of-ours", str(folder / "src" / "main.py"))
    assert program.directory == folder


async def test_broken_folders_are_listed_and_stop_nobody(tmp_path: Path) -> None:
    write_agent(tmp_path, "good", PROGRAM)
    no_program = write_agent(tmp_path, "empty", PROGRAM)
    (no_program / "src" / "main.py").unlink()
    wrong = write_agent(tmp_path, "wrong", PROGRAM, inputs=[{"name": "x", "type": "picture"}])
    (tmp_path / "notes").mkdir()  # no manifest: no agent
    registry = AgentRegistry([tmp_path, tmp_path / "absent"])
    await registry.load()
    assert [a.id for a in registry.list()] == ["good"]
    broken = {b.directory: b.error.code for b in registry.broken()}
    assert broken == {no_program: "AGENT_START_FAILED", wrong: "MANIFEST_INVALID"}


async def test_added_folders_are_remembered(tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "a", "echo", PROGRAM)
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        registry = AgentRegistry(database=database)
        await registry.load()
        assert (await registry.add(folder, now=1.0)).id == "echo"
        await registry.add(folder, now=2.0)
        with pytest.raises(Invalid, match="MANIFEST_INVALID"):
            await registry.add(tmp_path / "absent")
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        registry = AgentRegistry(database=database)
        await registry.load()
        assert [a.directory for a in registry.list()] == [folder]


# The order that SemVer 2.0 §11 gives as its example.
ORDER = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
]


@given(st.permutations(ORDER))
def test_versions_sort_as_semver_says(versions: list[str]) -> None:
    assert sorted(versions, key=semver_key) == ORDER


def test_build_metadata_does_not_count() -> None:
    assert semver_key("1.0.0+a") == semver_key("1.0.0+b")
