"""Models by card: the look-up order, the pin, and what an error tells the person who reads it."""

import hashlib
import os
import re
from pathlib import Path

import mentatlab_models
import msgspec
import numpy as np
import pytest

from mentatlab.protocol.errors import Code, Invalid, NotFound
from mentatlab.sdk import models
from mentatlab.sdk.models import (
    CARDS,
    ModelCard,
    OnnxModel,
    Places,
    cores_given,
    find_model,
    load_card,
)

DATA = Path(mentatlab_models.__file__).parent


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(model_dir=tmp_path / "models", cache=tmp_path / "cache")


def write_card(folder: Path, id_: str, body: bytes, *, sha256: str | None = None) -> Path:
    """A model of one file `w.bin` with this body and pin (None = that of the body)."""
    folder.mkdir(parents=True, exist_ok=True)
    pin = hashlib.sha256(body).hexdigest() if sha256 is None else sha256
    (folder / "w.bin").write_bytes(body)
    card = folder / f"{id_}.yaml"
    card.write_text(
        f"{{id: {id_}, task: test, licence: CC0-1.0, source: here,"
        f" files: [{{name: w.bin, sha256: '{pin}'}}]}}"
    )
    return card


@pytest.mark.parametrize("card", [c.stem for c in sorted(CARDS.glob("*.yaml"))])
def test_every_card_reads_and_names_itself(card: str) -> None:
    read = load_card(card)
    assert read.id == card
    assert read.licence
    assert read.source
    assert all(re.fullmatch(r"[0-9a-f]{64}|", f.sha256) for f in read.files)


@pytest.mark.parametrize("card", [c.name for c in sorted(DATA.glob("*.yaml"))])
def test_the_data_package_is_what_the_cards_pin(card: str) -> None:
    """Card here = card there = bytes there = sha256 in its NOTICE."""
    assert (CARDS / card).read_bytes() == (DATA / card).read_bytes()
    read = msgspec.yaml.decode((DATA / card).read_bytes(), type=ModelCard)
    notice = (DATA / "NOTICE.md").read_text()
    for file in read.files:
        data = (DATA / file.name).read_bytes()
        if file.role == "weights":
            assert hashlib.sha256(data).hexdigest() == file.sha256
            assert len(data) == file.bytes
            assert f"`{file.name}`, sha256 {file.sha256}" in notice
        assert f"`{file.name}`" in notice


def test_the_data_package_carries_no_model_without_a_card() -> None:
    pinned = {f.name for c in DATA.glob("*.yaml") for f in load_card(c).files}
    assert {f.name for f in DATA.glob("*.onnx")} <= pinned


@pytest.mark.parametrize("name", ["efficientnet-lite0", "nanodet-416", "whisper-tiny.en"])
def test_installed_packages_are_found(name: str, places: Places) -> None:
    model = find_model(name, places)
    assert model.path.is_file()
    assert places.cache not in model.path.parents


def test_labels_come_from_the_package_or_from_beside_the_weights(places: Places) -> None:
    assert find_model("nanodet-416", places).labels()[:2] == ("person", "bicycle")
    assert find_model("whisper-tiny.en", places).labels() == ()
    assert places.model_dir
    own = places.model_dir / "nanodet-416"
    own.mkdir(parents=True)
    (own / "nanodet-416.onnx").symlink_to(DATA / "nanodet-416.onnx")
    (own / "coco-80.labels.txt").write_text("one\ntwo\n")
    model = find_model("nanodet-416", places)
    assert model.directory == own
    assert model.labels() == ("one", "two")


def test_labels_that_are_nowhere(tmp_path: Path) -> None:
    card = tmp_path / "m.yaml"
    card.write_text(
        "{id: m, task: t, licence: l, source: s,"
        " files: [{name: w.bin}, {name: names.txt, role: labels}]}"
    )
    (tmp_path / "w.bin").touch()
    with pytest.raises(NotFound, match=r"names\.txt"):
        find_model(card).labels()


def test_the_order_is_explicit_path_model_dir_cache(places: Places, tmp_path: Path) -> None:
    """All three hold the pinned bytes; each is taken when the ones before it are gone."""
    assert places.model_dir
    explicit = write_card(tmp_path / "explicit", "m", b"weights")
    for folder in (places.model_dir / "m", places.cache / "m"):
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(b"weights")
    order = [explicit.parent, places.model_dir / "m", places.cache / "m"]
    for folder in order:
        assert find_model(explicit, places).directory == folder
        (folder / "w.bin").unlink()
    with pytest.raises(NotFound):
        find_model(explicit, places)


def test_wrong_bytes_are_passed_over_for_the_pinned_ones(places: Places) -> None:
    assert places.model_dir
    own = places.model_dir / "nanodet-416"
    own.mkdir(parents=True)
    (own / "nanodet-416.onnx").write_bytes(b"something else")
    assert find_model("nanodet-416", places).directory != own


def test_only_wrong_bytes_is_a_mismatch(places: Places) -> None:
    assert places.model_dir
    own = places.model_dir / "resnet50"
    own.mkdir(parents=True)
    (own / "resnet50-v1-7.onnx").write_bytes(b"not it")
    with pytest.raises(Invalid) as caught:
        find_model("resnet50", places)
    assert caught.value.code == Code.MODEL_HASH_MISMATCH
    assert load_card("resnet50").files[0].sha256 in caught.value.message
    assert str(own) in caught.value.message
    assert "MENTATLAB_MODEL_DIR" in caught.value.hint


def test_a_missing_model_names_the_pin_and_the_override(places: Places) -> None:
    with pytest.raises(NotFound) as caught:
        find_model("resnet50", places)
    assert caught.value.code == Code.MODEL_NOT_FOUND
    assert load_card("resnet50").files[0].sha256 in caught.value.message
    assert "onnxmodelzoo" in caught.value.message
    assert "MENTATLAB_MODEL_DIR" in caught.value.hint
    assert "resnet50/" in caught.value.hint


def test_an_unpinned_model_is_taken_only_from_where_the_user_said(places: Places) -> None:
    (places.cache / "vit-base").mkdir(parents=True)
    (places.cache / "vit-base" / "model.onnx").touch()
    with pytest.raises(NotFound, match="not pinned"):
        find_model("vit-base", places)
    with pytest.raises(NotFound, match="MENTATLAB_MODEL_DIR is not set"):
        find_model("vit-base", Places(model_dir=None, cache=places.cache))
    assert places.model_dir
    (places.model_dir / "vit-base").mkdir(parents=True)
    (places.model_dir / "vit-base" / "model.onnx").touch()
    assert find_model("vit-base", places).path.parent == places.model_dir / "vit-base"


def test_a_card_of_the_users_own(places: Places) -> None:
    assert places.model_dir
    write_card(places.model_dir / "mine", "mine", b"weights")
    assert find_model("mine", places).card.id == "mine"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/hostname", "unknown", "", ".."])
def test_an_unknown_name_lists_the_known_and_is_never_a_path(name: str, places: Places) -> None:
    with pytest.raises(NotFound, match="efficientnet-lite0"):
        find_model(name, places)


def test_a_broken_card_says_where(tmp_path: Path) -> None:
    card = tmp_path / "m.yaml"
    card.write_text("{id: m}")
    with pytest.raises(Invalid, match=r"m\.yaml"):
        find_model(card)


def test_a_size_that_differs_needs_no_hash(tmp_path: Path) -> None:
    card = write_card(tmp_path, "m", b"abc")
    card.write_text(card.read_text().replace("name: w.bin", "name: w.bin, bytes: 4"))
    before = models._sha256.cache_info().misses  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Invalid):
        find_model(card)
    assert models._sha256.cache_info().misses == before  # pyright: ignore[reportPrivateUsage]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    card = write_card(tmp_path, "m", b"abc")
    before = models._sha256.cache_info().misses  # pyright: ignore[reportPrivateUsage]
    find_model(card)
    find_model(card)
    assert models._sha256.cache_info().misses == before + 1  # pyright: ignore[reportPrivateUsage]
    (tmp_path / "w.bin").write_bytes(b"abd")
    os.utime(tmp_path / "w.bin", ns=(1, 1))
    with pytest.raises(Invalid) as caught:
        find_model(card)
    assert caught.value.code == Code.MODEL_HASH_MISMATCH


def test_places_from_the_environment(tmp_path: Path) -> None:
    set_ = Places.from_environment({"MENTATLAB_MODEL_DIR": "/m", "XDG_CACHE_HOME": str(tmp_path)})
    assert set_ == Places(model_dir=Path("/m"), cache=tmp_path / "mentatlab" / "models")
    unset = Places.from_environment({})
    assert unset.model_dir is None
    assert unset.cache == Path.home() / ".cache" / "mentatlab" / "models"


def test_onnx_model_answers_by_name() -> None:
    model = OnnxModel(DATA / "efficientnet-lite0.onnx", threads=1)
    outputs = model.run(input=np.zeros((2, 3, 224, 224), np.float32))
    assert {n: o.shape for n, o in outputs.items()} == {"logits": (2, 1000), "features": (2, 1280)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", None), ("", None)],
)
def test_cores_given_heeds_the_container(text: str, expected: int | None, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    unlimited = cores_given(tmp_path / "nowhere")
    assert cores_given(limit) == (expected or unlimited)
    assert unlimited >= 1
