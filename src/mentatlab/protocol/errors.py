"""The one error tree.

MentatError
├── Invalid            the input is wrong; sending it again cannot help
│   └── ValidationFailed   many problems at once, each with code, JSON pointer, message, hint
├── Unauthenticated    no or a bad credential
│   └── CredentialEnded    it was good until its time was over; another one will do
├── Forbidden          a good credential that may not do this
├── NotFound           unknown, or not yours (the two look alike on purpose)
├── Gone               it was here and has expired
├── Conflict           the state does not allow it now
│   └── Fenced         a newer epoch or attempt has taken over
├── TooLarge           over a stated limit
├── UnsupportedMedia   the bytes are not of a type that is accepted here
├── RangeUnsatisfiable the asked byte range lies outside the object
├── RateLimited        too many requests; `retry_after_s` says when
├── Unavailable        this part cannot answer now; try again
├── OutOfSpace         disk or quota is full; nothing was stored
├── AgentFailed        an agent process ended badly
└── Internal           a bug here

`code` is one of `Code`; every code has a page in docs/reference/errors/ (a test checks it).
"""

# The names are the words of the tree above; "Error" behind each would say nothing more.
# ruff: noqa: N818

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Literal

import msgspec


class Code(StrEnum):
    """Every error code that MentatLab itself reports. Agents may report codes of their own."""

    # generic
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_TEXT = "INVALID_TEXT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    FORBIDDEN_HOST = "FORBIDDEN_HOST"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    CONFLICT = "CONFLICT"
    RATE_LIMITED = "RATE_LIMITED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    URI_TOO_LONG = "URI_TOO_LONG"
    HEADERS_TOO_LARGE = "HEADERS_TOO_LARGE"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    DISK_FULL = "DISK_FULL"
    DATABASE_ERROR = "DATABASE_ERROR"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    DATABASE_IN_USE = "DATABASE_IN_USE"
    FEATURE_DISABLED = "FEATURE_DISABLED"
    # starting up
    PORT_IN_USE = "PORT_IN_USE"
    HOME_IN_USE = "HOME_IN_USE"
    KEYS_REQUIRED = "KEYS_REQUIRED"
    BAD_SETTING = "BAD_SETTING"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    MISSING_EXTRA = "MISSING_EXTRA"
    # manifests
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_SYNTAX = "MANIFEST_SYNTAX"
    MANIFEST_MISSING_MIME = "MANIFEST_MISSING_MIME"
    MANIFEST_BAD_SIZE = "MANIFEST_BAD_SIZE"
    MANIFEST_BAD_MIME = "MANIFEST_BAD_MIME"
    MANIFEST_UNKNOWN_PROFILE = "MANIFEST_UNKNOWN_PROFILE"
    MANIFEST_WARM_SERVICE = "MANIFEST_WARM_SERVICE"
    MANIFEST_DUPLICATE_PIN = "MANIFEST_DUPLICATE_PIN"
    MANIFEST_OLD_ENV = "MANIFEST_OLD_ENV"
    MANIFEST_RESERVED_ENV = "MANIFEST_RESERVED_ENV"
    # flows
    FLOW_SYNTAX = "FLOW_SYNTAX"
    FLOW_INVALID = "FLOW_INVALID"
    SUITE_INVALID = "SUITE_INVALID"
    UNKNOWN_AGENT = "UNKNOWN_AGENT"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    UNKNOWN_FLOW = "UNKNOWN_FLOW"
    UNKNOWN_PIN = "UNKNOWN_PIN"
    DUPLICATE_NODE = "DUPLICATE_NODE"
    DUPLICATE_INPUT = "DUPLICATE_INPUT"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    MIME_MISMATCH = "MIME_MISMATCH"
    CONSTRAINT_CONFLICT = "CONSTRAINT_CONFLICT"
    MISSING_INPUT = "MISSING_INPUT"
    CYCLE = "CYCLE"
    UNREACHABLE_NODE = "UNREACHABLE_NODE"
    FOREACH_NOT_A_LIST = "FOREACH_NOT_A_LIST"
    FOREACH_STREAM_OUTPUT = "FOREACH_STREAM_OUTPUT"
    NEEDS_FOREACH = "NEEDS_FOREACH"
    NOT_RUNNABLE_HERE = "NOT_RUNNABLE_HERE"
    BAD_PARAM = "BAD_PARAM"
    EXPRESSION_INVALID = "EXPRESSION_INVALID"
    EXPRESSION_ERROR = "EXPRESSION_ERROR"
    SCHEMA_MISMATCH = "SCHEMA_MISMATCH"
    FLOW_LIMIT = "FLOW_LIMIT"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    UNUSED_FIELD = "UNUSED_FIELD"
    # storage and media
    REFERENCE_INVALID = "REFERENCE_INVALID"
    REFERENCE_NOT_FOUND = "REFERENCE_NOT_FOUND"
    REFERENCE_EXPIRED = "REFERENCE_EXPIRED"
    REFERENCE_CORRUPT = "REFERENCE_CORRUPT"
    UPLOAD_NOT_FOUND = "UPLOAD_NOT_FOUND"
    UPLOAD_INCOMPLETE = "UPLOAD_INCOMPLETE"
    UPLOAD_EXPIRED = "UPLOAD_EXPIRED"
    UPLOAD_LOCKED = "UPLOAD_LOCKED"
    UPLOAD_SUPERSEDED = "UPLOAD_SUPERSEDED"
    UPLOAD_OFFSET_MISMATCH = "UPLOAD_OFFSET_MISMATCH"
    UPLOAD_CHECKSUM_MISMATCH = "UPLOAD_CHECKSUM_MISMATCH"
    TUS_VERSION_UNSUPPORTED = "TUS_VERSION_UNSUPPORTED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STORE_FOREIGN = "STORE_FOREIGN"
    EMPTY_MEDIA = "EMPTY_MEDIA"
    MEDIA_TYPE_MISMATCH = "MEDIA_TYPE_MISMATCH"
    MEDIA_TOO_LARGE = "MEDIA_TOO_LARGE"
    MEDIA_TOO_LONG = "MEDIA_TOO_LONG"
    MEDIA_CONSTRAINT = "MEDIA_CONSTRAINT"
    PREVIEW_UNAVAILABLE = "PREVIEW_UNAVAILABLE"
    S3_PREFIX_FORBIDDEN = "S3_PREFIX_FORBIDDEN"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    FORM_INVALID = "FORM_INVALID"
    RANGE_NOT_SATISFIABLE = "RANGE_NOT_SATISFIABLE"
    PRECONDITION_FAILED = "PRECONDITION_FAILED"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    SIGNATURE_EXPIRED = "SIGNATURE_EXPIRED"
    KEY_EXISTS = "KEY_EXISTS"
    # media inside agents
    IMAGE_UNREADABLE = "IMAGE_UNREADABLE"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    VIDEO_UNREADABLE = "VIDEO_UNREADABLE"
    NO_VIDEO_STREAM = "NO_VIDEO_STREAM"
    AUDIO_UNREADABLE = "AUDIO_UNREADABLE"
    NO_AUDIO_STREAM = "NO_AUDIO_STREAM"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_HASH_MISMATCH = "MODEL_HASH_MISMATCH"
    ENDPOINT_NOT_CONFIGURED = "ENDPOINT_NOT_CONFIGURED"
    ENDPOINT_FAILED = "ENDPOINT_FAILED"
    # streams
    STREAM_UNKNOWN = "STREAM_UNKNOWN"
    STREAM_ENDED = "STREAM_ENDED"
    STREAM_FENCED = "STREAM_FENCED"
    STREAM_GAP_IN_PRODUCER = "STREAM_GAP_IN_PRODUCER"
    STREAM_LOST = "STREAM_LOST"
    STREAM_RECORD_INVALID = "STREAM_RECORD_INVALID"
    STREAM_RECORD_TOO_LARGE = "STREAM_RECORD_TOO_LARGE"
    STREAM_CURSOR_INVALID = "STREAM_CURSOR_INVALID"
    STREAM_TRUNCATED = "STREAM_TRUNCATED"
    STREAM_FORBIDDEN = "STREAM_FORBIDDEN"
    STREAM_EXPIRED = "STREAM_EXPIRED"
    STREAM_BUFFER_EXCEEDED = "STREAM_BUFFER_EXCEEDED"
    STREAM_NOT_DURABLE = "STREAM_NOT_DURABLE"
    TOKEN_INVALID = "TOKEN_INVALID"
    # runs
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    RUN_TERMINAL = "RUN_TERMINAL"
    RUN_ACTIVE = "RUN_ACTIVE"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    RUN_NOT_RUNNING = "RUN_NOT_RUNNING"
    GATE_NOT_OPEN = "GATE_NOT_OPEN"
    TOO_MANY_RUNS = "TOO_MANY_RUNS"
    TOO_MANY_ITEMS = "TOO_MANY_ITEMS"
    INPUTS_TOO_LARGE = "INPUTS_TOO_LARGE"
    SECRET_MISSING = "SECRET_MISSING"
    SECRET_INVALID = "SECRET_INVALID"
    SECRET_UNREADABLE = "SECRET_UNREADABLE"
    SCHEDULE_INVALID = "SCHEDULE_INVALID"
    WEBHOOK_SIGNATURE = "WEBHOOK_SIGNATURE"
    WEBHOOK_REPLAYED = "WEBHOOK_REPLAYED"
    WEBHOOK_INVALID = "WEBHOOK_INVALID"
    WEBHOOK_ADDRESS_REFUSED = "WEBHOOK_ADDRESS_REFUSED"
    WEBHOOK_UNREACHABLE = "WEBHOOK_UNREACHABLE"
    RUN_INPUT_UNKNOWN = "RUN_INPUT_UNKNOWN"
    RUN_INPUT_MISSING = "RUN_INPUT_MISSING"
    RUN_INPUT_TYPE = "RUN_INPUT_TYPE"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    LEASE_LOST = "LEASE_LOST"
    # agent processes
    AGENT_EXIT = "AGENT_EXIT"
    AGENT_TRANSIENT = "AGENT_TRANSIENT"
    AGENT_START_FAILED = "AGENT_START_FAILED"
    AGENT_TIMEOUT = "AGENT_TIMEOUT"
    AGENT_KILLED = "AGENT_KILLED"
    AGENT_OOM = "AGENT_OOM"
    AGENT_PROTOCOL = "AGENT_PROTOCOL"
    AGENT_LINE_TOO_LONG = "AGENT_LINE_TOO_LONG"
    AGENT_FLOOD = "AGENT_FLOOD"
    AGENT_CANCELLED = "AGENT_CANCELLED"
    AGENT_ERROR = "AGENT_ERROR"
    AGENT_SCRATCH_FULL = "AGENT_SCRATCH_FULL"
    AGENT_PROCESSES = "AGENT_PROCESSES"
    RESOURCES_UNAVAILABLE = "RESOURCES_UNAVAILABLE"
    NO_RESULT = "NO_RESULT"
    OUTPUT_MISSING = "OUTPUT_MISSING"
    OUTPUT_TYPE = "OUTPUT_TYPE"
    OUTPUT_FILE_INVALID = "OUTPUT_FILE_INVALID"
    VALUE_TOO_LARGE = "VALUE_TOO_LARGE"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    GATE_REJECTED = "GATE_REJECTED"
    ENGINE_LOST = "ENGINE_LOST"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding about a document. `path` is an RFC 6901 JSON pointer into it."""

    code: Code
    path: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"


class MentatError(Exception):
    """Base of all; `hint` says what the reader can do, `retryable` that trying again may help.

    Survives pickling, so that a worker process can raise it.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self, code: Code, message: str, *, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Callable[..., "MentatError"], tuple[Any, ...]]:
        return _revive, (type(self), self.args, self.__dict__.copy())


def _revive(kind: type[MentatError], args: tuple[Any, ...], state: dict[str, Any]) -> MentatError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class Invalid(MentatError):
    pass


class ValidationFailed(Invalid):
    """Every problem of a document at once; `code` is that of the kind of document."""

    def __init__(self, code: Code, message: str, problems: list[Problem]) -> None:
        super().__init__(code, message, hint=problems[0].hint if problems else "")
        self.problems = problems

    def __str__(self) -> str:
        lines = [
            super().__str__(),
            *(f"  {p.path or '/'}: {p.code}: {p.message}" for p in self.problems),
        ]
        return "\n".join(lines)


class Unauthenticated(MentatError):
    pass


class CredentialEnded(Unauthenticated):
    pass


class Forbidden(MentatError):
    pass


class NotFound(MentatError):
    pass


class Gone(MentatError):
    pass


class Conflict(MentatError):
    pass


class Fenced(Conflict):
    pass


class TooLarge(MentatError):
    pass


class UnsupportedMedia(MentatError):
    pass


class RangeUnsatisfiable(MentatError):
    def __init__(self, size: int) -> None:
        super().__init__(Code.RANGE_NOT_SATISFIABLE, f"the object has {size} bytes")
        self.size = size


class RateLimited(MentatError):
    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            Code.RATE_LIMITED,
            f"too many requests or records; try again in {math.ceil(retry_after_s)} s",
            hint="wait as long as Retry-After says; your own server's rates are settings "
            "(MENTATLAB_RATE, MENTATLAB_RECORD_RATE)",
        )
        self.retry_after_s = retry_after_s


class Unavailable(MentatError):
    retryable = True


class OutOfSpace(MentatError):
    pass


class AgentFailed(MentatError):
    pass


class Internal(MentatError):
    pass
