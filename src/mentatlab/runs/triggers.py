"""What starts runs of stored flows by itself, and the engine."""

from collections.abc import Iterator, Mapping
from typing import Any

from mentatlab.flows.analysis import is_needed
from mentatlab.flows.flow import load_flow
from mentatlab.flows.plan import Plan, compile_plan
from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.runs.digests import digest_of
from mentatlab.runs.engine import Engine
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.schedules import Schedule
from mentatlab.runs.state import RUN_TERMINAL, RunPhase
from mentatlab.runs.store import RunFilter, RunStore
from mentatlab.runs.values import check_inputs, inputs_refused
from mentatlab.runs.webhooks import Webhook

_ACTIVE = tuple(str(phase) for phase in RunPhase if phase not in RUN_TERMINAL)
_MOST = 200


class Triggers:
    """Runs are of the flow as it is stored at the time. What is made to start them is checked
    against the flow as it is then; the digest of that flow tells later whether it has changed."""

    def __init__(
        self, engine: Engine, store: RunStore, flows: FlowStore, agents: AgentRegistry
    ) -> None:
        self._engine, self._store, self._flows, self._agents = engine, store, flows, agents

    async def check_schedule(
        self, flow_id: str, inputs: Mapping[str, Any], *, workspace: str
    ) -> str:
        """The flow's digest. `NotFound`, `ValidationFailed` with every problem of the flow, or of
        the inputs."""
        document = await self._document(flow_id, workspace)
        check_inputs(self._plan(document), inputs)
        return digest_of(document)

    async def check_webhook(self, flow_id: str, input_name: str, *, workspace: str) -> str:
        """As `check_schedule`. With "" a call's body holds all inputs, so only it can be wrong."""
        document = await self._document(flow_id, workspace)
        plan = self._plan(document)
        if input_name and (problems := list(_body_problems(plan, input_name))):
            raise inputs_refused(problems)
        return digest_of(document)

    def _plan(self, document: Mapping[str, Any]) -> Plan:
        return compile_plan(load_flow(document), self._agents.manifest)

    async def submit(self, schedule: Schedule, key: str) -> str:
        return await self._made(schedule, schedule.inputs, key, "schedule")

    async def call(self, hook: Webhook, inputs: dict[str, Any], key: str | None) -> str:
        """The run that a call of a webhook makes."""
        return await self._made(hook, inputs, key, "webhook")

    async def _made(
        self, made_by: Schedule | Webhook, inputs: dict[str, Any], key: str | None, kind: str
    ) -> str:
        document: dict[str, Any] | None = None
        try:
            document = await self._document(made_by.flow_id, made_by.workspace)
            run = await self._engine.submit(
                document,
                inputs,
                workspace=made_by.workspace,
                idempotency_key=key,
                trigger=f"{kind}:{made_by.id}",
            )
        except ValidationFailed as error:
            digest = document and digest_of(document)
            if made_by.digest and made_by.digest != digest:
                raise _changed(made_by.flow_id, kind, error) from error
            raise
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


def _body_problems(plan: Plan, name: str) -> Iterator[Problem]:
    """Of a webhook whose calls give the input `name`, and nothing else."""
    fed = plan.input(name)
    if fed is None:
        known = ", ".join(i.name for i in plan.inputs) or "none"
        text = f"the flow has no input {name}"
        yield Problem(Code.RUN_INPUT_UNKNOWN, "/input", text, f"its inputs are: {known}")
    for wanted in plan.inputs:
        if wanted is not fed and is_needed(wanted.pin):
            text = f"a call would give {name} only, and the flow needs {wanted.name} too"
            hint = "leave `input` out: a call's body then holds all inputs by name"
            yield Problem(Code.RUN_INPUT_MISSING, "/input", text, hint)


def _changed(flow_id: str, kind: str, error: ValidationFailed) -> ValidationFailed:
    text = (
        f"the flow {flow_id} has changed since this {kind} was made, and does not fit it any more: "
        f"{error.message}"
    )
    return ValidationFailed(error.code, text, error.problems)
