"""Results used again: a node with `cache` whose agent, parameters and inputs were the same in an
earlier run has its outputs. By content, so equal bytes under another reference count as equal.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.errors import Gone, MentatError, NotFound
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.values import is_object
from mentatlab.runs.assignment import Assignment
from mentatlab.runs.edges import is_array
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.store import CacheEntry

logger = logging.getLogger(__name__)

_IGNORED = frozenset({"__pycache__", ".git", ".venv", "node_modules"})


class ContentCache:
    """Of one run. `find` answers a key that `remember` takes when there was nothing."""

    def __init__(self, services: Services, run: RunInfo) -> None:
        self._services, self._run = services, run

    async def key(self, work: Assignment, inputs: Mapping[str, Any]) -> str:
        manifest = work.node.manifest
        assert manifest is not None
        folder = self._services.registry.get(f"{manifest.id}:{manifest.version}").directory
        return key_of(work.node, inputs, await asyncio.to_thread(program_digest, folder))

    async def find(self, key: str) -> CacheEntry | None:
        """A hit; the run has become an owner of everything that its outputs refer to."""
        entry = await self._services.store.cached(self._run.workspace, key)
        if entry is None or entry.run_id == self._run.id:
            return entry
        edges, workspace = self._services.edges, self._run.workspace
        try:
            await edges.check_there(entry.outputs, workspace)
            await edges.own(entry.outputs, workspace, f"run:{self._run.id}")
        except (NotFound, Gone):  # no hit any more; what was owned so far goes with the run
            return None
        return entry

    async def remember(
        self, key: str, node: str, item: int | None, outputs: Mapping[str, Any]
    ) -> None:
        entry = CacheEntry(
            workspace=self._run.workspace,
            key=key,
            run_id=self._run.id,
            node=node,
            item=item,
            outputs=dict(outputs),
            created_at=self._services.clock(),
        )
        try:
            await self._services.store.remember(entry)
        except MentatError as error:
            logger.warning("a result of %s could not be remembered: %s", node, error)


def key_of(node: PlanNode, inputs: Mapping[str, Any], program: str) -> str:
    """Hex sha256. The manifest is part of it as it stands, so are models that it names. Pure."""
    manifest = node.manifest
    assert manifest is not None
    said = [manifest.document(), program, node.params, _by_content(dict(inputs))]
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _by_content(value: Any) -> Any:
    """The value with references told by what they refer to, and not by where it lies."""
    if is_object(value):
        if is_reference(value):
            ref = value["ref"]
            return ["reference", value["type"], ref.get("blake3"), ref.get("metadata")]
        return {k: _by_content(v) for k, v in value.items()}
    if is_array(value):
        return [_by_content(v) for v in value]
    return value


_digests: dict[Path, tuple[str, str]] = {}


def program_digest(folder: Path) -> str:
    """Of every file in an agent's folder. Read again when a name, size or time has changed."""
    files = sorted(path for path in folder.rglob("*") if _counts(path, folder))
    stats = [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
    seen = hashlib.sha256(msgspec.json.encode(stats)).hexdigest()
    known = _digests.get(folder)
    if known is None or known[0] != seen:
        whole = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.relative_to(folder)}\0{digest}\n".encode())
        known = _digests[folder] = (seen, whole.hexdigest())
    return known[1]


def _counts(path: Path, folder: Path) -> bool:
    return path.is_file() and not _IGNORED.intersection(path.relative_to(folder).parts)
