"""A clock that stands still until it is moved."""


class ManualClock:
    """Give it where a `clock: Callable[[], float]` is asked for; `now` in Unix seconds."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
