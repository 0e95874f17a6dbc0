from collections.abc import Iterator

import pytest

from support.redis import RedisProcess, redis_server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One for all tests of a process; they have prefixes of their own, and leave it running."""
    with redis_server(tmp_path_factory.mktemp("redis")) as process:
        yield process
