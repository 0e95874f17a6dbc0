"""The lanes of one run: made before it begins, begun again by later attempts, ended with their
nodes."""

import asyncio
import logging
from collections.abc import Sequence

from mentatlab.flows.plan import Plan, PlanNode
from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.pins import BY_REFERENCE
from mentatlab.protocol.records import EndReason
from mentatlab.runs import commands as cmd
from mentatlab.runs.lanes import Standing, stream_id
from mentatlab.runs.maps import head_of_item
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.state import NodePhase, RunState
from mentatlab.runs.values import run_lanes

logger = logging.getLogger(__name__)


class RunLanes:
    """`standing`: of each lane, by name, the records that count; `complete`: whether every lane
    that had to end has ended."""

    def __init__(self, services: Services, run: RunInfo, plan: Plan) -> None:
        self._services, self._run, self._plan = services, run, plan
        self.standing: dict[str, Standing] = {}
        self.complete = True

    def name(self, node: str, pin: str) -> str:
        return stream_id(self._run.id, node, pin)

    async def open(self, state: RunState) -> None:
        """Those that are there stay as they are. What a node gave in another run stands in the
        lanes of that run."""
        wanted = [
            (node, pin)
            for node, pin in run_lanes(self._plan)
            if state.nodes[node.id].phase is not NodePhase.CACHED
        ]
        await asyncio.gather(*(self._open(node, pin) for node, pin in wanted))  # in one commit

    async def _open(self, node: PlanNode, pin: str) -> None:
        session = await self._services.hub.create_stream(
            node.type,
            pin,
            workspace=self._run.workspace,
            run_id=self._run.id,
            node_id=node.id,
            mime_type=_mime(node, pin),
            stream_id=self.name(node.id, pin),
        )
        ranges = session.lane.standing
        self.standing[session.stream_id] = Standing(ranges) if ranges else Standing()

    def cut(self, commands: Sequence[cmd.Command]) -> None:
        """What is read from now on of lanes that are to begin again does not count."""
        for command in commands:
            if isinstance(command, cmd.OpenStream):
                keep = 0 if command.item else command.resume_from
                self.standing[self.name(command.node, command.pin)].cut(keep)

    async def reopen(self, command: cmd.OpenStream) -> int:
        """The lane's next attempt; up to which sequence the older records stand."""
        name, head = self.name(command.node, command.pin), command.resume_from
        if command.item:
            head = await head_of_item(self._services, name, command.item)
        started = await self._services.hub.start_attempt(
            name, attempt=command.attempt, resume_from=head
        )
        standing = self.standing[name]
        standing.cut(head)
        standing.reopen(started.last)
        return head

    async def end(self, command: cmd.EndStream) -> None:
        error = None
        if command.error is not None:
            text = f"{command.error.code}: {command.error.message}"
            error = (_STREAM_ERRORS.get(command.error.code, "agent_error"), text)
        reason: EndReason = "cancelled" if command.outcome == "cancelled" else "complete"
        name = self.name(command.node, command.pin)
        if name not in self.standing:
            return  # another run's, which has ended it
        try:
            await self._services.hub.end_stream(name, reason=reason, error=error)
        except MentatError:
            logger.exception("the stream %s could not be ended; the next start will", name)
            self.complete = False


_STREAM_ERRORS: dict[str, str] = {
    Code.AGENT_TIMEOUT: "timeout",
    Code.UPSTREAM_FAILED: "cancelled_upstream",
    Code.DISK_FULL: "storage_failed",
    Code.INTERNAL: "internal",
}


def _mime(node: PlanNode, pin_name: str) -> str:
    """Of the elements; a pin that allows several says none."""
    pin = next(p for p in node.output_pins if p.name == pin_name)
    mime = pin.metadata.mime_type
    if mime and "," not in mime and "*" not in mime:
        return mime
    return "application/octet-stream" if pin.item_type in BY_REFERENCE else "application/json"
