"""One real server for a whole module; a module with agents of its own overrides `agents`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.conftest import write_agent
from tests.support.api import Api, api_of
from tests.support.server import up


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    return folder


@pytest.fixture(scope="module")
def api(agents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with up(tmp_path_factory.mktemp("home"), "--agents", agents) as server, api_of(server) as api:
        yield api


@pytest.fixture
def well_afterwards(api: Api) -> Iterator[None]:
    """Whatever the test did, the server goes on as if nothing had been."""
    yield
    api.is_well()
    for bug in ("unexpected error", "Traceback", "never retrieved", "never awaited"):
        assert bug not in api.server.log()
