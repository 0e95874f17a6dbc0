"""The error that an agent raises on purpose."""


class AgentError(Exception):
    """A failure with a code. `retryable` asks the platform to try again; `hint` tells a person what
    to do.

    `code` is one of the platform's (`IMAGE_UNREADABLE`, …) or the agent's own, in the same form.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False, hint: str = "") -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.retryable = retryable
        self.hint = hint
