"""`kill -9` of a process that writes a log: what it acknowledged is there, nothing is doubled."""

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from mentatlab.protocol.records import Producer, data_draft
from mentatlab.streams import SqliteStreamLog
from mentatlab.streams.sealing import Limits
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, lane, opened, sequences

# Publishes small and large records to a few lanes as one producer each, from what the log has on,
# and says what was acknowledged; begins and ends runs beside it, which are sealed at once.
WRITER = """
import asyncio, sys
from pathlib import Path
from mentatlab.protocol.records import Draft, Producer, data_draft, end_draft
from mentatlab.streams.sealing import Limits
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, binary, lane, opened

async def publish(log, name):
    stream_id = await opened(log, lane(name))
    known = await log.producer(stream_id, "p")
    seq = 1 if known is None else known.seq + 1
    while True:
        draft = data_draft(seq) if seq % 3 else binary(seq.to_bytes(4, "big") * 5000)
        await append(log, stream_id, draft, producer=Producer(id="p", epoch=1, seq=seq))
        print(name, seq, flush=True)
        seq += 1

async def finish_runs(log, boot):
    number = 0
    while True:
        run_id = f"rn_{boot}_{number}"
        stream_id = await opened(log, lane("a", run_id=run_id))
        await append(log, stream_id, data_draft("x"), binary(b"y" * 30_000), end)
        print("run", run_id, flush=True)
        await log.tidy(NOW + 100)
        number += 1

end = end_draft("complete", chunks=0)

async def main(path, boot):
    log = await open_sqlite(Path(path), limits=Limits(age_s=1, min_bytes=0), roll_bytes=200_000)
    async with asyncio.TaskGroup() as tasks:
        for name in "bcd":
            tasks.create_task(publish(log, name))
        tasks.create_task(finish_runs(log, boot))

asyncio.run(main(*sys.argv[1:]))
"""

# As above, but killed when the large record is in its file and the commit has not been made.
BETWEEN = """
import asyncio, os, signal, sys
from pathlib import Path
from mentatlab.streams import segments
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import append, binary, lane, opened

async def main(path):
    log = await open_sqlite(Path(path))
    stream_id = await opened(log, lane())
    await append(log, stream_id, binary(b"1" * 50_000))
    synced = segments._sync_data
    def synced_and_killed(fd):
        synced(fd)
        os.kill(os.getpid(), signal.SIGKILL)
    segments._sync_data = synced_and_killed
    await append(log, stream_id, binary(b"2" * 50_000))

asyncio.run(main(*sys.argv[1:]))
"""


async def killed_after(path: Path, boot: int, lines: int) -> list[tuple[str, str]]:
    """What the writer said before it was killed."""
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(path), str(boot)), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    said = [await writer.stdout.readline() for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    said += (await writer.stdout.read()).splitlines(keepends=True)
    await writer.wait()
    pairs = [line.decode().split() for line in said if line.endswith(b"\n")]
    return [(name, value) for name, value in pairs]


async def check(log: SqliteStreamLog, acked: Counter[str], runs: list[str]) -> None:
    for name in "bcd":
        stream_id, after, numbers = lane(name).stream_id, 1, list[int]()
        while entries := await log.read(stream_id, after):
            assert sequences(entries) == list(range(after + 1, after + 1 + len(entries)))
            for entry in entries:
                payload = entry.record.payload
                number = payload.get("data") or int.from_bytes(payload["bytes"][:4], "big")
                assert "data" in payload or payload["bytes"] == number.to_bytes(4, "big") * 5000
                numbers.append(number)
            after = entries[-1].sequence
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= acked[name]
    for run_id in runs:
        assert len(await log.read_run(run_id, 0)) == 4


@pytest.mark.parametrize(
    "lines", [40, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
async def test_what_was_acknowledged_survives(tmp_path: Path, lines: int) -> None:
    path, acked, runs = tmp_path / "streams.db", Counter[str](), list[str]()
    for boot in range(4):
        for name, value in await killed_after(path, boot, lines + 7 * boot):
            if name == "run":
                runs.append(value)
            else:
                acked[name] = int(value)
        log = await open_sqlite(path, limits=Limits(age_s=1, min_bytes=0))
        await check(log, acked, runs)
        await log.tidy(NOW + 100)
        await check(log, acked, runs)
        await log.aclose()
    assert len(runs) > 4
    sealed = list((tmp_path / "streams-sealed").iterdir())
    assert len(sealed) >= len(runs)
    assert list((tmp_path / "streams-segments").glob("*.new")) == []


async def test_a_kill_between_the_file_and_the_commit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", BETWEEN, str(path))
    assert await writer.wait() == -signal.SIGKILL
    (file,) = (tmp_path / "streams-segments").iterdir()
    assert b"2" * 50_000 in file.read_bytes()
    log = await open_sqlite(path)
    try:
        stream_id = await opened(log)
        assert sequences(await log.read(stream_id, 0)) == [1, 2]
        producer = Producer(id="p", epoch=1, seq=1)
        assert (await append(log, stream_id, data_draft(1), producer=producer)).first == 3
    finally:
        await log.aclose()
