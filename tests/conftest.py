"""What holds for every test."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.support.redis import RedisProcess, redis_server
from tests.support.seaweed import SeaweedProcess, seaweed_server

from mentatlab.home import default_home

# A busy machine is no fault of the code: no example is timed. CI judges a change by the same
# examples each time; new ones are tried everywhere else.
settings.register_profile(
    "mentatlab",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="MENTATLAB_CI" in os.environ,
)
settings.load_profile("mentatlab")

# The suite starts hundreds of interpreters: one that may not keep bytecode compiles us in each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A background job and nohup ignore these, and so would every program that a test starts to signal.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _the_users_own_home_is_left_alone() -> Iterator[None]:
    existed = default_home().exists()
    yield
    assert default_home().exists() == existed


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One for all tests of a process; they have prefixes of their own, and leave it running."""
    with redis_server(tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    """An S3 server for all tests of a process; each has a bucket or a prefix of its own."""
    with seaweed_server(tmp_path_factory.mktemp("seaweed")) as process:
        yield process
