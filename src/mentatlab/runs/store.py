"""The run store port: runs, their event logs, flow snapshots, idempotency keys; which engine
conducts a run, what others ask of it, its checkpoints, and results to be used again.

Appending events and changing the run's row are one transaction, fenced by the lease epoch: an owner
that lost its lease cannot append.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from mentatlab.database import Hint
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.runs import events as ev

LEASE_S = 10.0
RENEW_S = 3.0


class Snapshot(msgspec.Struct, frozen=True):
    """What a run executes: the flow document and the manifests it names, by agent id as written."""

    digest: str
    document: dict[str, Any]
    manifests: dict[str, dict[str, Any]]


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `runs`; times are Unix seconds. `closed`: the streams and the projection are done
    too. `origin`, `from_node` and `trigger` as in `RunCreated`."""

    id: str
    workspace: str
    flow_id: str
    digest: str
    engine_version: str
    inputs: dict[str, Any]
    state: str
    reason: str = ""
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    owner: str
    epoch: int = 1
    last_seq: int = 0
    closed: bool = False
    origin: str = ""
    from_node: str = ""
    trigger: str = ""


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs of a workspace: those to which all of it applies.

    `since` <= created < `until`, Unix seconds; `trigger` is a whole one or its kind (`schedule`);
    `text` is a part of the run's id, its flow's, or its reason, in any case.
    """

    states: tuple[str, ...] = ()
    flow_id: str | None = None
    since: float | None = None
    until: float | None = None
    trigger: str | None = None
    origin: str | None = None
    text: str | None = None


EVERY_RUN = RunFilter()


class Idempotency(msgspec.Struct, frozen=True):
    """`request`: a digest of what was asked; the same key with another one is a conflict."""

    key: str
    request: str


class Request(msgspec.Struct, frozen=True):
    """What somebody wants of the engine that conducts a run."""

    id: str
    run_id: str
    request: dict[str, Any]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent said last about how far it is: `state` is its own, `offsets` those of its
    inputs, `heads` of its output lanes when it was read."""

    node: str
    item: int | None = None
    attempt: int
    state: Any
    offsets: dict[str, int]
    heads: dict[str, int]


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The outputs of a node, for another run with the same `key`."""

    workspace: str
    key: str
    run_id: str
    node: str
    item: int | None = None
    outputs: dict[str, Any]
    created_at: float


Rows = list[RunRow]
Facts = list[ev.RunFact]
Log = list[tuple[int, ev.RunFact]]
Requests = list[Request]
Checkpoints = list[Checkpoint]


class RunStore(Protocol):
    """Promises: every call is atomic; a run's events are 1..n; reads see the last commit."""

    @property
    def shared(self) -> bool:
        """Whether other engines may use it too."""
        ...

    async def create(
        self,
        row: RunRow,
        snapshot: Snapshot,
        events: Sequence[ev.RunFact],
        idempotency: Idempotency | None = None,
    ) -> str:
        """The new run's id, or that of the run which the same key made before, with nothing
        written. The webhooks of its flow will be told of its end.

        `Conflict(IDEMPOTENCY_CONFLICT)` when the key was used for another request.
        """
        ...

    async def append(self, row: RunRow, events: Sequence[ev.RunFact]) -> None:
        """Add events after `row.last_seq - len(events)` and write the row's state; with the run's
        end, what is to be told to those who asked for it.

        `Fenced(LEASE_LOST)` when the run's epoch or last event is not the one that `row` continues.
        """
        ...

    async def close(self, run_id: str, epoch: int) -> None:
        """Everything that follows from the run's end is done."""
        ...

    async def delete(self, run_id: str) -> None:
        """The run, its events and its idempotency key; fine when it is gone."""
        ...

    async def get(self, run_id: str) -> RunRow:
        """`NotFound(RUN_NOT_FOUND)`"""
        ...

    async def find(self, workspace: str, idempotency: Idempotency) -> str | None:
        """The run that this key made. `Conflict(IDEMPOTENCY_CONFLICT)` as in `create`."""
        ...

    async def list(
        self,
        workspace: str,
        *,
        filter: RunFilter = EVERY_RUN,
        limit: int,
        before: str | None = None,
    ) -> Rows:
        """Newest first; `before` is a run id."""
        ...

    async def waiting(self, workspace: str) -> int:
        """How many of its runs wait for their turn, whichever engine has them."""
        ...

    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> Log:
        """In order, with their sequence numbers."""
        ...

    async def item_events(self, run_id: str, node: str) -> Facts:
        """Outcomes of a `forEach` node's items and its voids, in commit order."""
        ...

    async def snapshot(self, digest: str) -> Snapshot: ...

    # --- whose a run is

    async def renew(self, owner: str, lease_s: float = LEASE_S) -> set[str]:
        """The engine `owner` lives for `lease_s` seconds more, on the database's clock. The runs
        that are still its own and not closed."""
        ...

    async def claim(self, owner: str, *, limit: int = 100) -> Rows:
        """Take over, under a higher epoch, runs that are not closed and whose owner's lease is over
        or released: the oldest first. When nobody else can write to the store, any other's."""
        ...

    async def release(self, owner: str) -> None:
        """End its lease: what it has not closed can be claimed at once."""
        ...

    # --- what others want of a run's owner

    async def ask(self, run_id: str, request: dict[str, Any]) -> Request:
        """For the engine that conducts the run, now or later; at least once, so asking for the same
        thing twice must do no harm. Forgotten with the run's end. `NotFound(RUN_NOT_FOUND)`"""
        ...

    async def is_open(self, request: Request) -> bool:
        """Whether it was not done yet, and its run has not ended."""
        ...

    async def asked(self, owner: str) -> Requests:
        """What is asked of runs that are `owner`'s, the oldest first."""
        ...

    async def answered(self, request: Request) -> None:
        """It is done; not to be given again."""
        ...

    def listen(self, topic: str) -> AbstractContextManager[Hint]:
        """Hints of news: about a run (by its id) when it ends or something asked of it was done;
        about an engine (by its owner's id) when something is asked of it. They may be lost: look
        for yourself, then `await hint.wait()`, which gives up after a second, and look again."""
        ...

    # --- checkpoints, and results to be used again

    async def save_checkpoint(self, run_id: str, epoch: int, checkpoint: Checkpoint) -> None:
        """The last one of its node or item, until that has ended. `Fenced(LEASE_LOST)`"""
        ...

    async def checkpoints(self, run_id: str) -> Checkpoints: ...

    async def remember(self, entry: CacheEntry) -> None:
        """In place of an older one with the same key; gone with its run."""
        ...

    async def cached(self, workspace: str, key: str) -> CacheEntry | None: ...


def unknown_run(run_id: str) -> NotFound:
    return NotFound(
        Code.RUN_NOT_FOUND, f"there is no run {run_id}", hint="`mentatlab runs ls` lists them"
    )
