"""A server that dies right after a commit to the log of a run."""

import os
import signal
from collections.abc import Sequence

from mentatlab.runs.events import RunFact
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.store import Idempotency, RunRow, Snapshot


def kill_this_server() -> None:
    """By SIGKILL, once a run that this process has made has `KILL_AFTER` events."""
    last = int(os.environ["KILL_AFTER"])
    made: set[str] = set()
    create, append = SqlRunStore.create, SqlRunStore.append

    def die(row: RunRow) -> None:
        if row.id in made and row.last_seq >= last:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    async def create_and_die(
        self: SqlRunStore,
        row: RunRow,
        snapshot: Snapshot,
        events: Sequence[RunFact],
        idempotency: Idempotency | None = None,
    ) -> str:
        run_id = await create(self, row, snapshot, events, idempotency)
        if run_id == row.id:
            made.add(run_id)
            die(row)
        return run_id

    async def append_and_die(self: SqlRunStore, row: RunRow, events: Sequence[RunFact]) -> None:
        await append(self, row, events)
        die(row)

    SqlRunStore.create, SqlRunStore.append = create_and_die, append_and_die
