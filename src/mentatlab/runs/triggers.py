"""What starts runs of stored flows by itself, and the engine."""

from typing import Any

from mentatlab.runs.engine import Engine
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.schedules import Schedule
from mentatlab.runs.state import RUN_TERMINAL, RunPhase
from mentatlab.runs.store import RunFilter, RunStore
from mentatlab.runs.webhooks import Webhook

_ACTIVE = tuple(str(phase) for phase in RunPhase if phase not in RUN_TERMINAL)
_MOST = 200


class Triggers:
    """Runs are of the flow as it is stored at the time."""

    def __init__(
        self, engine: Engine, store: RunStore, flows: FlowStore, agents: AgentRegistry
    ) -> None:
        self._engine, self._store, self._flows, self._agents = engine, store, flows, agents

    async def submit(self, schedule: Schedule, key: str) -> str:
        document = await self._document(schedule.flow_id, schedule.workspace)
        run = await self._engine.submit(
            document,
            schedule.inputs,
            workspace=schedule.workspace,
            idempotency_key=key,
            trigger=f"schedule:{schedule.id}",
        )
        return run.id

    async def call(self, hook: Webhook, inputs: dict[str, Any], key: str | None) -> str:
        """The run that a call of a webhook makes."""
        document = await self._document(hook.flow_id, hook.workspace)
        run = await self._engine.submit(
            document,
            inputs,
            workspace=hook.workspace,
            idempotency_key=key,
            trigger=f"webhook:{hook.id}",
        )
        return run.id

    async def _document(self, flow_id: str, workspace: str) -> dict[str, Any]:
        stored = await self._flows.get(flow_id, workspace=workspace)
        return await self._flows.whole(
            stored.document, workspace=workspace, lookup=self._agents.manifest
        )

    async def active(self, schedule: Schedule) -> set[str]:
        wanted = RunFilter(states=_ACTIVE, trigger=f"schedule:{schedule.id}")
        found = await self._store.list(schedule.workspace, filter=wanted, limit=_MOST)
        return {row.id for row in found}
