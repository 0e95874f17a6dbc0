"""Large payloads in files beside the database: named only when on disk, gone when not needed."""

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from mentatlab.protocol.errors import Code, Gone, OutOfSpace
from mentatlab.protocol.records import Draft, RecordType, StreamChunk, data_draft, end_draft
from mentatlab.sqlite import Database
from mentatlab.streams import SqliteStreamLog, segments
from mentatlab.streams.port import Entry, Lane, Retention, StreamLog
from mentatlab.streams.rows import LARGE
from mentatlab.streams.schema import SCHEMA
from mentatlab.streams.segments import SegmentFiles
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, binary, lane, opened, sequences

BIG = b"\x07" * (LARGE + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "streams-segments"


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteStreamLog]:
    log = await open_sqlite(tmp_path / "streams.db", roll_bytes=100_000)
    yield log
    await log.aclose()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def big(*numbers: int) -> list[Draft]:
    return [binary(BIG + bytes([number])) for number in numbers]


async def all_of(log: StreamLog, stream_id: str) -> Sequence[Entry]:
    return await log.read(stream_id, 0, max_bytes=1 << 30)


async def test_only_what_is_large_leaves_the_database(log: SqliteStreamLog, folder: Path) -> None:
    stream_id = await opened(log)
    appended = await append(log, stream_id, data_draft("small"), binary(b"small"))
    assert files(folder) == []
    more = await append(log, stream_id, binary(BIG), data_draft("x" * LARGE))
    assert files(folder) == ["00000001.seg"]
    written = more.entries[0].frame, more.entries[1].json
    assert (folder / "00000001.seg").read_bytes() == b"".join(part or b"" for part in written)
    assert (await all_of(log, stream_id))[1:] == [*appended.entries, *more.entries]


async def test_files_are_rolled_and_go_when_nothing_refers_to_them(
    log: SqliteStreamLog, folder: Path
) -> None:
    kept = await opened(log, lane(run_id="rn_kept"))
    await append(log, kept, *big(0))
    done = await opened(log, lane(run_id="rn_done"))
    for number in range(27):
        await append(log, done, *big(number))
    assert len(files(folder)) == 4
    await log.delete_run("rn_done")
    left = files(folder)
    assert (left[0], len(left)) == ("00000001.seg", 2)  # that of the other run, and the newest
    assert len(await all_of(log, kept)) == 2


async def test_expiry_and_max_bytes_free_files_too(log: SqliteStreamLog, folder: Path) -> None:
    ring = await opened(log, lane("a", retention=Retention(max_bytes=2 * len(BIG))))
    for number in range(40):
        await append(log, ring, *big(number))
    assert len(files(folder)) == 6
    assert len(files(folder)) == 6
    assert [entry.sequence for entry in await all_of(log, ring)] == [1, 41]
    await append(log, ring, end_draft("complete", chunks=0))
    await log.expire(ring)
    await log.aclose()
    await (await open_sqlite(folder.parent / "streams.db")).aclose()
    assert files(folder) == []


async def test_a_restart_begins_a_new_file_and_a_torn_tail_is_harmless(
    tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "streams.db"
    log = await open_sqlite(path)
    stream_id = await opened(log)
    await append(log, stream_id, *big(1))
    before = await all_of(log, stream_id)
    await log.aclose()
    with (folder / "00000001.seg").open("ab") as file:
        file.write(b"half a record that was never committed")
    (folder / "00000007.seg").write_bytes(b"a whole file that was never committed")
    log = await open_sqlite(path)
    try:
        assert files(folder) == ["00000001.seg"]
        await append(log, stream_id, *big(2))
        assert files(folder) == ["00000001.seg", "00000008.seg"]
        assert list(await all_of(log, stream_id))[:2] == before
        assert len(await all_of(log, stream_id)) == 3
    finally:
        await log.aclose()


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(BIG) + 100 + 9_000] ^= 1  # within the second record
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, len(BIG) + 10_000)


@pytest.mark.parametrize(
    ("damage", "lost"), [(flipped, [3]), (cut, [3, 4]), (Path.unlink, [2, 3, 4])]
)
async def test_damage_costs_the_records_that_it_hit(
    log: SqliteStreamLog, folder: Path, damage: object, lost: list[int]
) -> None:
    stream_id = await opened(log)
    await append(log, stream_id, *big(1, 2, 3), data_draft("small"))
    assert callable(damage)
    damage(folder / "00000001.seg")
    for sequence in range(1, 6):
        if sequence not in lost:
            assert sequences(await log.read(stream_id, sequence - 1, max_records=1)) == [sequence]
            continue
        for call in (log.read(stream_id, sequence - 1), log.read_run("rn_1", sequence - 1)):
            with pytest.raises(Gone) as caught:
                await call
            assert caught.value.code is Code.STREAM_LOST
            assert caught.value.details == {"stream_id": stream_id, "sequence": sequence}
    assert sequences(await all_of(log, stream_id)) == list(range(1, lost[0]))


async def test_a_full_disk_changes_nothing(
    log: SqliteStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_id = await opened(log)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(segments.os, "pwrite", full)
        with pytest.raises(OutOfSpace):
            await append(log, stream_id, *big(1))
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_sync_data", full)
        with pytest.raises(OutOfSpace):
            await append(log, stream_id, *big(2))
    assert (await log.get(stream_id)).head == 1
    await append(log, stream_id, *big(3))
    assert len(await all_of(log, stream_id)) == 2


async def test_files_of_a_group_that_is_not_committed_yet_stay(tmp_path: Path) -> None:
    """`drop` asks the last commit, which cannot know them."""
    held = SegmentFiles(tmp_path / "s", roll_bytes=1)
    held.open(0)
    for _ in range(3):
        held.append(b"x")
    assert held.drop(lambda _: False) == 0
    held.sync()  # and the commit
    assert held.drop(lambda _: False) == 0
    held.append(b"x")
    held.sync()
    assert held.drop(lambda number: number == 1) == 1
    assert files(tmp_path / "s") == ["00000001.seg", "00000003.seg", "00000004.seg"]
    held.close()


async def test_an_older_database_is_taken_over(tmp_path: Path) -> None:
    """Of the second schema: lanes become due as they would have, ended runs are sealed."""
    path = tmp_path / "streams.db"
    old = await Database(path, SCHEMA[:2]).open()
    made = [
        lane("a", retention=Retention(ttl_s=10)),
        lane("b", retention=Retention(ttl_s=1, retain_s=5)),
        lane("c", run_id="rn_2"),
    ]
    made[0] = msgspec.structs.replace(made[0], head=1, changed_at=NOW)
    made[1] = msgspec.structs.replace(made[1], head=2, changed_at=NOW, state="ended")
    made[2] = msgspec.structs.replace(made[2], head=1, changed_at=NOW, state="ended", kept=LARGE)
    await old.write(lambda connection: fill(connection, made))
    await old.aclose()
    log = await open_sqlite(path)
    try:
        assert [found.stream_id for found in await log.due(2e9)] == ["st_rn_1_b", "st_rn_1_a"]
        await log.tidy(2e9)
        assert len(files(tmp_path / "streams-sealed")) == 1
        for each in made:
            assert await log.get(each.stream_id) == each
            (entry,) = await log.read(each.stream_id, 0)
            assert entry.record.payload == {"data": each.stream_id}
    finally:
        await log.aclose()


def fill(connection: sqlite3.Connection, lanes: list[Lane]) -> None:
    for number, each in enumerate(lanes, 1):
        row = (each.run_id, each.workspace, len(lanes))
        connection.execute(
            "INSERT OR IGNORE INTO runs (run_id, workspace, head) VALUES (?,?,?)", row
        )
        connection.execute(
            "INSERT INTO lanes (run, node_id, pin_name, stream_id, lane)"
            " VALUES ((SELECT id FROM runs WHERE run_id = ?), ?, ?, ?, ?)",
            (
                *(each.run_id, each.node_id, each.pin_name, each.stream_id),
                msgspec.json.encode(each).decode(),
            ),
        )
        record = StreamChunk(
            type=RecordType.DATA,
            stream_id=each.stream_id,
            run_id=each.run_id,
            node_id=each.node_id,
            pin_name=each.pin_name,
            sequence=1,
            rseq=number,
            timestamp="2023-11-14T22:13:20.000Z",
            payload={"data": each.stream_id},
        )
        connection.execute(
            "INSERT INTO records (run, lane, sequence, rseq, type, size, json, time_ms) SELECT"
            " run, id, 1, ?, 'stream_data', 9, ?, 0 FROM lanes WHERE stream_id = ?",
            (number, msgspec.json.encode(record), each.stream_id),
        )
