"""What most tests of storage begin with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mentatlab.storage import StorageManager, open_local, open_memory
from mentatlab.testing.clock import ManualClock

NOW = 1_795_437_754.0  # Unix seconds, 2026-11-23
MAX_BYTES = 8 << 20


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(params=["local", "memory"])
async def storage(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[StorageManager]:
    local = open_local(
        tmp_path / "blobs", tmp_path / "catalog.db", max_bytes=MAX_BYTES, clock=clock
    )
    memory = open_memory(max_bytes=MAX_BYTES, clock=clock)
    async with local if request.param == "local" else memory as storage:
        yield storage
