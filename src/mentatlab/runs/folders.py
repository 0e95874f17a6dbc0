"""Scratch folders: one for each attempt. An agent that left its folder empty, as most do, gets it
again for a later attempt: on a disk with a journal, making and removing folders was a third of a
small run.
"""

import itertools
import shutil
from collections import defaultdict
from pathlib import Path

OUT = "out"
_MOST_KEPT = 64

Owner = tuple[str, str]
"""Workspace and agent: nobody else's processes have ever known the folder."""


class Folders:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._free: defaultdict[Owner, list[Path]] = defaultdict(list)

    def reserve(self, root: Path, owner: Owner) -> Path:
        """A folder that nobody else has; it may have to be made."""
        free = self._free[owner]
        return free.pop() if free else root / str(next(self._numbers))

    def keep(self, folder: Path, owner: Owner) -> bool:
        """Take it back, after its process is gone. False: it is to be removed."""
        free = self._free[owner]
        if len(free) >= _MOST_KEPT or not _is_empty(folder):
            return False
        free.append(folder)
        return True


def make(folder: Path) -> None:
    (folder / OUT).mkdir(parents=True, exist_ok=True)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    try:
        return [p.name for p in folder.iterdir()] == [OUT] and not any((folder / OUT).iterdir())
    except OSError:
        return False
