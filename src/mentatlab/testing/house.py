"""Everything below HTTP in one process, for tests and benchmarks: real databases, real agent
processes."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec

from mentatlab.runners.local import LocalRunner
from mentatlab.runners.port import Runner
from mentatlab.runs.engine import Engine
from mentatlab.runs.reading import RunReader
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.sqlite import Database
from mentatlab.storage.manager import StorageManager, open_local
from mentatlab.streams.hub import StreamingConnectionManager, open_hub


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    engine: Engine
    runs: RunReader
    store: SqlRunStore
    hub: StreamingConnectionManager
    storage: StorageManager
    registry: AgentRegistry
    database: Database


@asynccontextmanager
async def open_house(
    home: Path,
    agents: Iterable[Path],
    *,
    runner: Runner | None = None,
    min_free_bytes: int = 0,
    streams_in_memory: bool = False,
    **options: Any,
) -> AsyncGenerator[House]:
    """`home` as the server's home folder; `options` go to the engine."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(home / "runs.db", SCHEMA))
        streams = None if streams_in_memory else home / "streams.db"
        hub = await stack.enter_async_context(aclosing(await open_hub(streams)))
        storage = await stack.enter_async_context(
            open_local(home / "blobs", home / "catalog.db", min_free_bytes=min_free_bytes)
        )
        runner = await stack.enter_async_context(aclosing(runner or LocalRunner()))
        registry = AgentRegistry(agents, database)
        await registry.load()
        store = SqlRunStore(database)
        engine = Engine(
            store=store,
            hub=hub,
            storage=storage,
            runner=runner,
            registry=registry,
            scratch=home / "scratch",
            **options,
        )
        async with engine:
            yield House(
                engine=engine,
                runs=RunReader(store, hub),
                store=store,
                hub=hub,
                storage=storage,
                registry=registry,
                database=database,
            )


def write_agent(
    root: Path,
    agent_id: str,
    program: str,
    *,
    inputs: Iterable[Mapping[str, Any]] = (),
    outputs: Iterable[Mapping[str, Any]] = (),
    version: str = "1.0.0",
    **manifest: Any,
) -> Path:
    """A manifest folder with `src/main.py`; gives the folder."""
    folder = root / f"{agent_id}-{version}"
    (folder / "src").mkdir(parents=True)
    document = {
        "id": agent_id,
        "version": version,
        "inputs": list(inputs),
        "outputs": list(outputs),
        **manifest,
    }
    (folder / "manifest.json").write_bytes(msgspec.json.encode(document))
    (folder / "src" / "main.py").write_text(dedent(program))
    return folder
