"""The log on a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mentatlab.streams.redis import RedisStreamLog, open_redis_log
from mentatlab.testing.stream_log_contract import StreamLogContract
from support.redis import RedisProcess


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}:"


@pytest.fixture
async def log(redis: RedisProcess, prefix: str) -> AsyncIterator[RedisStreamLog]:
    log = await open_redis_log(redis.url, prefix=prefix)
    yield log
    await log.aclose()


class TestRedisLog(StreamLogContract):
    pass
