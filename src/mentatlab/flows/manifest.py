"""The agent manifest as its author writes it (`manifest.yaml`, schemas/agent.schema.json).

A superset of the manifest that older agents carry. A manifest with none of the newer fields is
*old*: its outputs may stay away, `env` may hold `K=V`, and pins called `spec` and `context` are
the envelope's own.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, ValidationError

from mentatlab.flows.document import (
    Count,
    Model,
    Positive,
    PositiveNumber,
    array,
    pointer,
    problems_of,
    read_document,
    whole,
)
from mentatlab.protocol.agent import (
    PROFILES,
    AgentProgram,
    Origin,
    Resources,
    Warm,
    is_reserved,
)
from mentatlab.protocol.agent import Batch as ProgramBatch
from mentatlab.protocol.errors import Code, Invalid, Problem, ValidationFailed
from mentatlab.protocol.pins import (
    MEDIA_TYPES,
    Pin,
    PinMetadata,
    PinType,
    TtlClass,
    mime_patterns,
    parse_size,
)
from mentatlab.protocol.values import is_object

ENTRY_FILES = ("src/main.py", "main.py")

_SEMVER = (
    r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _cores(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a number or a text")  # noqa: TRY004 (pydantic collects ValueError)
    if isinstance(value, str):
        parse_cpu(value)
    elif value <= 0:
        raise ValueError("must be greater than 0")
    return value


def _size(value: object) -> object:
    value = whole(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('must be a size such as "4Gi" or a number of bytes')  # noqa: TRY004
    _parsed_size(value)
    return value


def _parsed_size(value: str | int) -> int:
    try:
        return parse_size(value)
    except Invalid as error:
        raise ValueError(error.message) from error


def parse_cpu(value: str | float) -> float:
    """Cores of `0.5`, `"2"` or Kubernetes' `"500m"`."""
    if not isinstance(value, str):
        return float(value)
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(m?)", value)
    if match is None:
        raise ValueError(f"{value[:40]!r} is not a number of cores")
    return float(match[1]) / (1000 if match[2] else 1)


def _gpu(value: object) -> object:
    value = whole(value)
    if isinstance(value, int) and value >= 0:
        return value
    raise ValueError("must be true, false or a count")


class EnvEntry(msgspec.Struct, frozen=True):
    name: str
    value: str | None = None  # only old manifests carry values


def parse_env(entry: object) -> EnvEntry:
    """`NAME`, and of old manifests `NAME=value` and `{name, value}`; else ValueError."""
    match entry:
        case str():
            name, equals, value = entry.partition("=")
            parsed = EnvEntry(name, value if equals else None)
        case {"name": str(name), "value": str(value)}:
            parsed = EnvEntry(name, value)
        case {"name": str(name)} if is_object(entry) and "value" not in entry:
            parsed = EnvEntry(name)
        case _:
            raise ValueError("must be the name of a variable")
    if _ENV_NAME.fullmatch(parsed.name) is None:
        raise ValueError(f"{parsed.name[:60]!r} is not the name of a variable")
    return parsed


def _env_entry(value: Any) -> Any:
    parse_env(value)
    return value


PinName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)]
Size = Annotated[Any, AfterValidator(_size)]
TypeName = Annotated[PinType, Field(strict=False)]
ItemType = Literal["string", "number", "boolean", "json", "binary", "audio", "image", "video"]


class Metadata(Model):
    """What an output gives, what an input asks for. Units: Hz, px, s, frames a second."""

    mime_type: str | None = Field(default=None, alias="mimeType")
    encoding: str | None = None
    sample_rate: Positive | None = Field(default=None, alias="sampleRate")
    channels: Positive | None = None
    width: Positive | None = None
    height: Positive | None = None
    fps: PositiveNumber | None = None
    duration: PositiveNumber | None = None
    max_duration: PositiveNumber | None = Field(default=None, alias="maxDuration")
    max_size: str | None = Field(default=None, alias="maxSize")
    streaming: bool | None = None
    by_reference: bool | None = Field(default=None, alias="byReference")
    items: ItemType | None = None
    ttl: TtlClass | None = None

    def to_protocol(self) -> PinMetadata:
        return msgspec.convert(self.document(), PinMetadata)


class MultimodalPin(Model):
    name: PinName
    type: TypeName
    required: bool = True
    default: Any = None
    enum: list[Any] | None = Field(default=None, min_length=1)
    description: str = ""
    metadata: Metadata = Metadata()

    def validate_multimodal(self) -> list[Problem]:
        """What the media rules find on this pin alone; pointers are relative to the pin."""
        document = self.document()
        return [*size_problems(document), *mime_problems(document)]

    def to_pin(self) -> Pin:
        return Pin(
            name=self.name,
            type=self.type,
            required=self.required,
            default=self.default,
            enum=None if self.enum is None else tuple(self.enum),
            description=self.description,
            metadata=self.metadata.to_protocol(),
        )


_HOLDS = {
    PinType.AUDIO: ("audio", "video"),  # WebM and MP4 files of sound alone call themselves video
    PinType.IMAGE: ("image",),
    PinType.VIDEO: ("video", "image"),
}


def size_problems(pin: Mapping[str, Any]) -> Iterator[Problem]:
    """A `maxSize` that does not parse. Takes the document; wrong shapes are the model's."""
    text = metadata_of(pin).get("maxSize")
    try:
        parse_size(text if isinstance(text, str) else 0)
    except Invalid as error:
        yield Problem(error.code, pointer("metadata", "maxSize"), error.message, error.hint)


def mime_problems(pin: Mapping[str, Any]) -> Iterator[Problem]:
    """A `mimeType` that cannot be of the pin's type, or (a warning) none at all."""
    type_, mime = pin.get("type"), metadata_of(pin).get("mimeType")
    if str(type_) not in MEDIA_TYPES:
        return
    if mime is None:
        text = f"the {type_} pin {pin.get('name')!r} takes every format"
        hint = f'say which: metadata: {{mimeType: "{type_}/*"}}'
        yield Problem(Code.MANIFEST_MISSING_MIME, "", text, hint, severity="warning")
    elif isinstance(mime, str):
        families = {p.split("/")[0] for p in mime_patterns(mime)} - {"application", "*"}
        if families and families.isdisjoint(_HOLDS[PinType(type_)]):
            text = f"{mime!r} is not a type of {type_}"
            hint = f"give a MIME type of {type_}, such as {type_}/*"
            yield Problem(Code.MANIFEST_BAD_MIME, pointer("metadata", "mimeType"), text, hint)


def metadata_of(pin: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = pin.get("metadata")
    return metadata if is_object(metadata) else {}


class Batch(Model):
    max: Positive
    delay_ms: Count = 0


class Execution(Model):
    warm: bool = False
    concurrency: Positive = 1
    idle_ttl_s: PositiveNumber = 300.0
    max_invocations: Count = 0
    max_rss: Size = 0
    startup_timeout_s: PositiveNumber = 120.0
    batch: Batch | None = None

    def to_protocol(self, *, service: bool = False) -> Warm | None:
        if not (self.warm or service):
            return None
        return Warm(
            concurrency=self.concurrency,
            idle_ttl_s=self.idle_ttl_s,
            max_invocations=self.max_invocations,
            max_rss=parse_size(self.max_rss),
            startup_timeout_s=self.startup_timeout_s,
            batch=self.batch and ProgramBatch(max=self.batch.max, delay_ms=self.batch.delay_ms),
            service=service,
        )


class ResourceSpec(Model):
    cpu: Annotated[Any, AfterValidator(_cores)] | None = None
    memory: Size | None = None
    gpu: Annotated[Any, AfterValidator(_gpu)] | None = None
    timeout_seconds: PositiveNumber | None = None
    max_concurrent: Count | None = None
    scratch: Size | None = Field(default=None, alias="ephemeralStorage")
    profiles: list[str] = []


def resolve_resources(
    spec: ResourceSpec, profiles: Mapping[str, Resources] = PROFILES
) -> Resources:
    """The largest of the named profiles, overridden by what the author wrote.

    A profile that this installation does not define is passed over (the validator warns).
    """
    known = [profiles[name] for name in spec.profiles if name in profiles]
    base = Resources()
    if known:
        base = Resources(
            cpu=max(r.cpu for r in known),
            memory=max(r.memory for r in known),
            gpu=max(r.gpu for r in known),
            scratch=max(r.scratch for r in known),
        )
    return msgspec.structs.replace(base, **_explicit(spec))


def _origins(spec: ResourceSpec) -> dict[str, Origin]:
    """Of the numbers that are not defaults. `gpu: true` is a wish, a count a demand."""
    known = any(name in PROFILES for name in spec.profiles)
    sized = ("cpu", "memory", "gpu", "scratch") if known else ()
    origins: dict[str, Origin] = dict.fromkeys(sized, "profile")
    origins |= dict.fromkeys(_explicit(spec), "manifest")
    return {**origins, "gpu": "profile"} if spec.gpu is True else origins


def _explicit(spec: ResourceSpec) -> dict[str, Any]:
    wanted = {
        "cpu": None if spec.cpu is None else parse_cpu(spec.cpu),
        "memory": None if spec.memory is None else parse_size(spec.memory),
        "gpu": None if spec.gpu is None else int(spec.gpu),
        "scratch": None if spec.scratch is None else parse_size(spec.scratch),
        "timeout_s": spec.timeout_seconds,
        "max_concurrent": spec.max_concurrent,
    }
    return {name: value for name, value in wanted.items() if value is not None}


class Manifest(Model):
    id: str = Field(pattern=r"^[a-zA-Z0-9_.-]+$", max_length=200)
    version: str = Field(pattern=_SEMVER, max_length=200)
    image: str = ""
    runtime: str = ""
    command: list[str] | None = Field(default=None, min_length=1)
    description: str = ""
    author: str = ""
    inputs: list[MultimodalPin] = []
    outputs: list[MultimodalPin] = []
    long_running: bool = Field(default=False, alias="longRunning")
    execution: Execution | None = None
    resources: ResourceSpec = ResourceSpec()
    env: list[Annotated[Any, AfterValidator(_env_entry)]] = []
    capabilities: Any = None
    ui: Any = None
    cache: Any = None

    @property
    def old(self) -> bool:
        return is_old(self.document())

    @cached_property
    def input_pins(self) -> tuple[Pin, ...]:
        pins = tuple(pin.to_pin() for pin in self.inputs)
        if not self.old:
            return pins
        return tuple(
            msgspec.structs.replace(p, required=False) if p.name in ("spec", "context") else p
            for p in pins
        )

    @cached_property
    def output_pins(self) -> tuple[Pin, ...]:
        return tuple(pin.to_pin() for pin in self.outputs)

    def env_entries(self) -> list[EnvEntry]:
        return [parse_env(entry) for entry in self.env]

    def limits(self, profiles: Mapping[str, Resources] = PROFILES) -> Resources:
        return resolve_resources(self.resources, profiles)

    def with_profile(self, profile: str) -> "Manifest":
        """The same agent with the resources of one profile."""
        return self.model_copy(update={"resources": ResourceSpec(profiles=[profile])})

    def program(self, directory: Path, *, interpreter: str = sys.executable) -> AgentProgram:
        """How to start this agent from its folder; `Invalid(AGENT_START_FAILED)` without an entry.

        The program of `command` is taken from the folder when it is there, else from the PATH.
        """
        env = self.env_entries()
        return AgentProgram(
            id=self.id,
            version=self.version,
            command=self._argv(directory, interpreter),
            directory=directory,
            inputs=self.input_pins,
            outputs=self.output_pins,
            env=tuple(e.name for e in env if e.value is None),
            fixed_env=tuple((e.name, e.value) for e in env if e.value is not None),
            warm=(self.execution or Execution()).to_protocol(service=self.long_running),
            resources=self.limits(),
            origins=_origins(self.resources),
            outputs_optional=self.old,
        )

    def _argv(self, directory: Path, interpreter: str) -> tuple[str, ...]:
        if self.command is not None:
            first = directory / self.command[0]
            program = str(first) if first.is_file() else self.command[0]
            if program in ("python", "python3"):
                program = interpreter
            return (program, *self.command[1:])
        for entry in ENTRY_FILES:
            if (directory / entry).is_file():
                return (interpreter, str(directory / entry))
        raise Invalid(
            Code.AGENT_START_FAILED,
            f"{self.id} has no program: neither `command` nor {' nor '.join(ENTRY_FILES)}",
            hint="add src/main.py beside the manifest, or `command: [program, argument…]` to it",
        )


_NEW_FIELDS = ("execution", "command", "cache")
_NEW_PIN_FIELDS = ("required", "default", "enum")
_NEW_METADATA = tuple(field.alias or name for name, field in Metadata.model_fields.items())


def is_old(document: Mapping[str, Any]) -> bool:
    """Whether a manifest has none of the newer fields (`type: stream` existed before them)."""
    return not any(f in document for f in _NEW_FIELDS) and not any(
        _is_new(pin) for _, pin in pins_of(document)
    )


def _is_new(pin: Mapping[str, Any]) -> bool:
    return (
        str(pin.get("type")) in MEDIA_TYPES
        or any(f in pin for f in _NEW_PIN_FIELDS)
        or any(f in metadata_of(pin) for f in _NEW_METADATA)
    )


def pins_of(
    document: Mapping[str, Any], sides: Iterable[str] = ("inputs", "outputs")
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(JSON pointer, pin) of every pin that is an object at all."""
    for side in sides:
        for index, pin in enumerate(array(document.get(side))):
            if is_object(pin):
                yield pointer(side, index), pin


FORMS = {
    "id": "letters, digits, `_`, `.` and `-`, such as example.echo",
    "version": 'a Semantic Version, such as "0.1.0"; quote it',
    "name": "a letter, then letters, digits, `_` and `-`",
    "inputs": "a list: `- {name: text, type: string}`",
    "outputs": "a list: `- {name: text, type: string}`",
    "command": "a list: `[python, src/main.py]`",
    "maxSize": 'a size such as "10MB"',
}


def manifest_problems(document: Mapping[str, Any]) -> list[Problem]:
    """What does not fit the model; see `ManifestValidator` for the rules beyond it."""
    try:
        return list(_reserved_env(Manifest.model_validate(document)))
    except ValidationError as error:
        return problems_of(error, Code.MANIFEST_INVALID, FORMS)


def _reserved_env(manifest: Manifest) -> Iterator[Problem]:
    """Where a variable is taken from the server's environment; a value that stands in the manifest
    is nobody's secret."""
    for index, entry in enumerate(manifest.env_entries()):
        if entry.value is None and is_reserved(entry.name):
            yield Problem(
                Code.MANIFEST_RESERVED_ENV,
                pointer("env", index),
                f"{entry.name} is a setting of the server, which no agent is given",
                "have the value set under a name of the agent's own, and list that",
            )


def load_manifest(source: str | bytes | Mapping[str, Any], *, name: str = "") -> Manifest:
    """`Invalid(MANIFEST_SYNTAX)` or `ValidationFailed(MANIFEST_INVALID)` with every problem."""
    document = (
        source
        if isinstance(source, Mapping)
        else read_document(source, code=Code.MANIFEST_SYNTAX, name=name)
    )
    what = f"{name or 'the manifest'} is not valid"
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, Code.MANIFEST_INVALID, FORMS)
        raise ValidationFailed(Code.MANIFEST_INVALID, what, problems) from error
    if problems := list(_reserved_env(manifest)):
        raise ValidationFailed(Code.MANIFEST_INVALID, what, problems)
    return manifest
