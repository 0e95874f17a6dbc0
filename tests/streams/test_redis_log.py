"""The log on a real Redis."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mentatlab.streams.redis import RedisStreamLog
from mentatlab.streams.redis_server import RedisServer
from mentatlab.testing.stream_log_contract import StreamLogContract
from support.redis import RedisProcess, redis_server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}:"


@pytest.fixture
async def log(redis: RedisProcess, prefix: str) -> AsyncIterator[RedisStreamLog]:
    log = RedisStreamLog(RedisServer(redis.url, prefix=prefix))
    yield log
    await log.aclose()


class TestRedisLog(StreamLogContract):
    pass
