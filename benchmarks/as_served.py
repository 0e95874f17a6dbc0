"""Work in this process under the same conditions as in the server's."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from mentatlab.cli.up import tune_garbage_collection

T = TypeVar("T")


def as_served(work: Coroutine[Any, Any, T]) -> T:
    """Run it as `mentatlab up` runs: on its event loop, with its garbage collection."""
    tune_garbage_collection()
    return uvloop.run(work)
