"""The attempts of one run that are at work: how they begin and end, and what each leaves behind for
the one that comes after it.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from mentatlab.flows.plan import Plan
from mentatlab.protocol.records import Draft
from mentatlab.runs import commands as cmd
from mentatlab.runs import signals as sg
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.attempts import NodeAttempt
from mentatlab.runs.journal import Journal
from mentatlab.runs.map_nodes import MapNodes
from mentatlab.runs.run_lanes import RunLanes
from mentatlab.runs.secrets import Mask, masked, masked_note
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.state import Unit
from mentatlab.runs.store import Checkpoint
from mentatlab.runs.values import Values

_UNIT = tuple[str, int | None]
_ATTEMPT = tuple[str, int | None, int]

UNCONFIRMED_S = 65.0
"""After an attempt was asked to stop (5 s later its process is killed): then it counts as ended,
though nobody could see it."""


class LiveAttempts:
    """`saved`: the last checkpoint by node and item; `percent`: the agents' last progress. `unit`
    gives the committed state of a node or item, `tell` takes signals for `decide`."""

    def __init__(
        self,
        services: Services,
        run: RunInfo,
        plan: Plan,
        values: Values,
        *,
        epoch: int,
        lanes: RunLanes,
        maps: MapNodes,
        journal: Journal,
        unit: Callable[[str, int | None], Unit | None],
        tell: Callable[[sg.Signal], None],
    ) -> None:
        self._services, self._run, self._plan, self._values = services, run, plan, values
        self._epoch, self._lanes, self._maps, self._journal = epoch, lanes, maps, journal
        self._unit, self._tell = unit, tell
        self._secrets: Mapping[str, str] = {}
        self._mask = Mask(())
        self._attempts: dict[_ATTEMPT, NodeAttempt] = {}
        self._running: dict[_ATTEMPT, asyncio.Task[None]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self.saved: dict[_UNIT, SavedState] = {}
        self.percent: dict[str, float] = {}

    async def prepare(self) -> None:
        """The secrets that the flow names; before anything else."""
        self._secrets = await self._services.secrets_for(self._run.workspace, self._plan.secrets)
        self._mask = Mask(self._secrets.values())

    def consumed(self) -> dict[str, Mapping[str, int]]:
        """Per node what it was given of each lane, by now or up to its last checkpoint."""
        saved = {n: s.offsets for (n, item), s in self.saved.items() if item is None}
        live = {n: a.consumed for (n, item, _), a in self._attempts.items() if item is None}
        return {**saved, **live}

    # -- beginnings

    def start(self, command: cmd.StartNode, tasks: asyncio.TaskGroup) -> None:
        unit = self._unit(command.node, command.item)
        work = self.assignment(
            command,
            started_at=unit.started_at if unit else self._services.clock(),
            saved=self.saved.pop((command.node, command.item), None),
            ooms=command.ooms,
        )
        folders = self._services.folders
        scratch = folders.reserve(self._services.scratch, work.owner)
        work = replace(work, scratch=scratch)
        attempt = NodeAttempt(
            work,
            element=functools.partial(self._maps.element, work.node),
            tell=self._tell,
            note=self._note,
            save=functools.partial(self._save, command),
        )
        key = (command.node, command.item, command.attempt)
        self._attempts[key] = attempt
        self._running[key] = tasks.create_task(self._conduct(attempt, key))

    def assignment(
        self,
        command: cmd.StartNode | cmd.Prepare,
        *,
        started_at: float,
        saved: SavedState | None = None,
        ooms: int = 0,
    ) -> Assignment:
        return Assignment(
            services=self._services,
            run=self._run,
            plan=self._plan,
            node=self._plan.node(command.node),
            values=self._values,
            item=command.item,
            number=command.attempt,
            started_at=started_at,
            saved=saved,
            standing=self._lanes.standing,
            left_out=command.left_out,
            ooms=ooms,
            secrets=self._secrets,
        )

    # -- what they say

    async def _save(self, command: cmd.StartNode, saved: SavedState) -> None:
        checkpoint = Checkpoint(
            node=command.node,
            item=command.item,
            attempt=command.attempt,
            state=saved.state,
            offsets=dict(saved.offsets),
            heads=dict(saved.heads),
        )
        await self._services.store.save_checkpoint(self._run.id, self._epoch, checkpoint)

    async def _note(self, node_id: str, drafts: list[Draft]) -> None:
        drafts = [masked_note(draft, self._mask) for draft in drafts]
        for draft in drafts:
            said = draft.values["data"]
            if said["kind"] == "progress" and "percent" in said and draft.item is None:
                self.percent[node_id] = said["percent"]
        await self._journal.log(self._plan.node(node_id), drafts)

    # -- ends

    async def _conduct(self, attempt: NodeAttempt, key: _ATTEMPT) -> None:
        try:
            ended = await attempt.run()
        except asyncio.CancelledError:  # the run goes on elsewhere
            attempt.remove()
            raise
        del self._attempts[key], self._running[key]
        node, item, number = key
        unit = self._unit(node, item)
        if attempt.saved is not None and unit is not None and unit.attempt == number:
            self.saved[node, item] = attempt.saved  # before the retry is decided
        self._tell(masked(ended, self._mask))
        await attempt.clear()

    def cancel(self, command: cmd.CancelNode) -> bool:
        """Whether it was at work."""
        key = (command.node, command.item, command.attempt)
        if key not in self._attempts:
            return False
        self._attempts[key].cancel(command.reason)
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(UNCONFIRMED_S, self._give_up, key))
        return True

    def _give_up(self, key: _ATTEMPT) -> None:
        """Nobody waits for its process any longer."""
        if (attempt := self._attempts.pop(key, None)) is not None:
            self._tell(attempt.unconfirmed())
            self._running.pop(key).cancel()

    def cancel_all(self, reason: str) -> None:
        for attempt in self._attempts.values():
            attempt.cancel(reason)

    def close(self) -> None:
        """Nobody waits for them any more."""
        for timer in self._timers:
            timer.cancel()
