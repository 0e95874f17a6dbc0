"""Who is next: first come, first served within a run; runs of a workspace take turns, and so do
workspaces. Pure.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import zip_longest
from typing import Generic, TypeVar

T = TypeVar("T")

_Runs = OrderedDict[str, deque[T]]


class FairQueue(Generic[T]):
    def __init__(self) -> None:
        self._workspaces: OrderedDict[str, _Runs[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, workspace: str, run: str, entry: T) -> None:
        runs = self._workspaces.setdefault(workspace, OrderedDict())
        runs.setdefault(run, deque()).append(entry)
        self._length += 1

    def heads(self) -> list[T]:
        """The first of every run, in the order in which they are to be served."""
        rounds = zip_longest(*(runs.values() for runs in self._workspaces.values()))
        return [waiting[0] for round_ in rounds for waiting in round_ if waiting]

    def served(self, workspace: str, run: str, entry: T) -> None:
        """It has had its turn; its run and its workspace go to the end."""
        if self.remove(workspace, run, entry):
            self._workspaces.move_to_end(workspace)
            if run in self._workspaces[workspace]:
                self._workspaces[workspace].move_to_end(run)

    def remove(self, workspace: str, run: str, entry: T) -> bool:
        """Whether anybody of its workspace still waits."""
        runs = self._workspaces[workspace]
        runs[run].remove(entry)
        self._length -= 1
        if not runs[run]:
            del runs[run]
        if not runs:
            del self._workspaces[workspace]
        return bool(runs)

    def __iter__(self) -> Iterator[T]:
        for runs in self._workspaces.values():
            for waiting in runs.values():
                yield from waiting
