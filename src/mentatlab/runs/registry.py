"""The agents this installation knows: manifest folders, by id and version.

A folder whose manifest does not load is listed with its problems; it never stops the others.
"""

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mentatlab.database import Connection, Database
from mentatlab.flows.manifest import Manifest, load_manifest
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound

MANIFEST_NAMES = ("manifest.yaml", "manifest.yml", "manifest.json")


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    manifest: Manifest
    directory: Path
    entry: AgentProgram

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def version(self) -> str:
        return self.manifest.version

    def program(self) -> AgentProgram:
        return self.entry


@dataclass(frozen=True, slots=True)
class BrokenAgent:
    """A manifest folder that cannot be used, and why."""

    directory: Path
    error: MentatError


Agents = list[RegisteredAgent]


class AgentRegistry:
    """`roots` are folders of manifest folders, or manifest folders themselves; more are added by
    `add` and remembered in the database when there is one. `await load()` before use."""

    def __init__(
        self,
        roots: Iterable[Path] = (),
        database: Database | None = None,
        *,
        interpreter: str = sys.executable,
    ) -> None:
        self._roots = tuple(roots)
        self._db = database
        self._interpreter = interpreter
        self._agents: dict[tuple[str, str], RegisteredAgent] = {}
        self._broken: dict[Path, BrokenAgent] = {}

    async def load(self) -> None:
        """Read every folder again."""
        added = await self._remembered()
        agents, broken = await asyncio.to_thread(self._scan, added)
        self._agents, self._broken = agents, broken

    def list(self) -> Agents:
        """By id, then version, oldest first."""
        return sorted(self._agents.values(), key=lambda a: (a.id, semver_key(a.version)))

    def broken(self) -> tuple[BrokenAgent, ...]:
        return tuple(self._broken.values())

    def find(self, name: str) -> RegisteredAgent | None:
        """`id` (its highest version) or `id:version`."""
        agent_id, _, version = name.partition(":")
        if version:
            return self._agents.get((agent_id, version))
        found = [a for a in self._agents.values() if a.id == agent_id]
        return max(found, key=lambda a: semver_key(a.version), default=None)

    def get(self, name: str) -> RegisteredAgent:
        """As `find`; `NotFound(UNKNOWN_AGENT)` when there is none."""
        agent = self.find(name)
        if agent is None:
            raise NotFound(
                Code.UNKNOWN_AGENT,
                f"there is no agent {name}",
                hint="`mentatlab agents ls` lists the agents; `mentatlab agents add DIR` adds one",
            )
        return agent

    def manifest(self, name: str) -> Manifest | None:
        """What the flow checker asks."""
        agent = self.find(name)
        return agent.manifest if agent else None

    async def add(self, directory: Path, *, now: float = 0.0) -> RegisteredAgent:
        """Load one manifest folder and remember it; raises what is wrong with it."""
        agent = await asyncio.to_thread(self._read, directory)
        if self._db is not None:
            sql = "INSERT INTO agents VALUES (?, ?) ON CONFLICT DO NOTHING"
            values = (str(agent.directory), now)
            await self._db.write(lambda db: db.execute(sql, values).rowcount)
        self._agents[agent.id, agent.version] = agent
        self._broken.pop(agent.directory, None)
        return agent

    async def _remembered(self) -> tuple[Path, ...]:
        if self._db is None:
            return ()

        def work(db: Connection) -> tuple[Path, ...]:
            rows = db.execute("SELECT directory FROM agents ORDER BY added_at, directory")
            return tuple(Path(row["directory"]) for row in rows)

        return await self._db.read(work)

    def _scan(
        self, added: tuple[Path, ...]
    ) -> tuple[dict[tuple[str, str], RegisteredAgent], dict[Path, BrokenAgent]]:
        agents: dict[tuple[str, str], RegisteredAgent] = {}
        broken: dict[Path, BrokenAgent] = {}
        for directory in (*_folders(self._roots), *added):
            try:
                agent = self._read(directory)
                agents[agent.id, agent.version] = agent
            except MentatError as error:
                broken[directory] = BrokenAgent(directory, error)
        return agents, broken

    def _read(self, directory: Path) -> RegisteredAgent:
        directory = directory.absolute()
        path = manifest_path(directory)
        if path is None:
            raise Invalid(
                Code.MANIFEST_INVALID,
                f"{directory} has no manifest.yaml",
                hint="name the folder that holds the agent's manifest.yaml",
            )
        try:
            text = path.read_bytes()
        except OSError as error:
            raise Invalid(
                Code.MANIFEST_INVALID,
                f"{path} cannot be read: {error}",
                hint="let the server's user read it",
            ) from error
        manifest = load_manifest(text, name=str(path))
        program = manifest.program(directory, interpreter=self._interpreter)
        return RegisteredAgent(manifest, directory, program)


def manifest_path(directory: Path) -> Path | None:
    return next((directory / n for n in MANIFEST_NAMES if (directory / n).is_file()), None)


def _folders(roots: Iterable[Path]) -> Iterable[Path]:
    for root in roots:
        if manifest_path(root):
            yield root
        elif root.is_dir():
            yield from sorted(d for d in root.iterdir() if d.is_dir() and manifest_path(d))


def semver_key(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Sorts by the precedence of SemVer 2.0 §11: a pre-release before its release, numbers before
    words."""
    core, _, pre = version.partition("+")[0].partition("-")
    parts = tuple(
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in pre.split(".")
        if part
    )
    return tuple(int(n) for n in core.split(".")), not pre, parts
