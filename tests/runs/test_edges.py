"""The edge processor over a real (memory) storage and real images."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mentatlab.protocol.errors import Gone, Invalid, MentatError, NotFound
from mentatlab.protocol.media import MediaReference
from mentatlab.protocol.pins import Pin, PinMetadata, PinType
from mentatlab.runs.edges import Budget, Edge, MultimodalEdgeProcessor
from mentatlab.storage.manager import StorageManager, open_memory


def png(width: int = 8, height: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
async def storage() -> AsyncIterator[StorageManager]:
    async with open_memory() as manager:
        yield manager


@pytest.fixture
def edges(storage: StorageManager) -> MultimodalEdgeProcessor:
    return MultimodalEdgeProcessor(storage)


def edge(type_: str = "image", **more: Any) -> Edge:
    pin = {k: more.pop(k) for k in ("required", "default", "enum") if k in more}
    metadata = PinMetadata(**more.pop("metadata", {}))
    values: dict[str, Any] = {
        "workspace": "w",
        "flow_id": "f",
        "run_id": "rn_1",
        "node_id": "n",
        "pin": Pin("p", PinType(type_), metadata=metadata, **pin),
        "owner": "run:rn_1",
        "now_ms": 1,
    }
    return Edge(**{**values, **more})


async def made(edges: MultimodalEdgeProcessor, data: Any, **more: Any) -> dict[str, Any]:
    return await edges.process_edge_data(edge(**more), data)


# -- the producer's side


@pytest.mark.parametrize("form", ["bytes", "base64", "text"])
async def test_raw_bytes_are_stored_and_probed(edges: MultimodalEdgeProcessor, form: str) -> None:
    body = png()
    text = base64.b64encode(body).decode()
    data = {"bytes": body, "base64": {"base64": text}, "text": text}[form]
    reference = await made(edges, data)
    assert reference["type"] == "image"
    assert reference["ref"]["size"] == len(body)
    found = reference["ref"]["metadata"]
    assert (found["mimeType"], found["width"], found["height"]) == ("image/png", 8, 4)


async def test_a_file_below_the_folder_is_stored_with_what_the_agent_said(
    edges: MultimodalEdgeProcessor, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    reference = await made(
        edges, {"path": "a.png", "metadata": {"frame": 7, "width": 99}}, below=tmp_path
    )
    assert reference["ref"]["metadata"]["frame"] == 7
    assert reference["ref"]["metadata"]["width"] == 8  # what probing found wins


async def test_only_files_below_the_folder_are_taken(
    edges: MultimodalEdgeProcessor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (out / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "missing.png"):
        with pytest.raises(Invalid, match="OUTPUT_FILE_INVALID"):
            await made(edges, {"path": path}, below=out)
    with pytest.raises(Invalid, match="OUTPUT_FILE_INVALID"):
        await made(edges, {"path": "a.png"})  # a value that no agent gave


async def test_references_are_taken_in_every_form_and_lose_their_local_path(
    edges: MultimodalEdgeProcessor, storage: StorageManager
) -> None:
    first = await made(edges, png())
    ref_id = first["ref"]["url"].rsplit("/", 1)[1]
    for form in (ref_id, first["ref"]["url"], {**first, "path": "/here"}):
        assert await made(edges, form) == first


@pytest.mark.parametrize(
    ("type_", "data", "code"),
    [
        ("image", 7, "OUTPUT_TYPE"),
        ("image", {"path": 1}, "OUTPUT_TYPE"),
        ("image", "no base64!", "OUTPUT_TYPE"),
        ("image", {"base64": "A" * 300_000}, "VALUE_TOO_LARGE"),
        ("image", b"", "EMPTY_MEDIA"),
        ("image", b"<html><body>no image</body></html>", "MEDIA_TYPE_MISMATCH"),
        ("string", 7, "OUTPUT_TYPE"),
        ("number", "7", "OUTPUT_TYPE"),
        ("number", True, "OUTPUT_TYPE"),
        ("boolean", 0, "OUTPUT_TYPE"),
        ("image", "blob_01M848RXTD4BJENKX187C13N12", "REFERENCE_NOT_FOUND"),
    ],
)
async def test_what_does_not_fit_is_refused(
    edges: MultimodalEdgeProcessor, type_: str, data: Any, code: str
) -> None:
    with pytest.raises(MentatError) as caught:
        await made(edges, data, type_=type_)
    assert caught.value.code == code


async def test_a_value_outside_the_enum_is_refused(edges: MultimodalEdgeProcessor) -> None:
    assert await made(edges, "a", type_="string", enum=("a", "b")) == "a"
    with pytest.raises(Invalid, match="none of a, b"):
        await made(edges, "c", type_="string", enum=("a", "b"))


@pytest.mark.parametrize("value", ["x" * 40_000, {"k": ["y" * 40_000, None, 1.5]}])
async def test_large_values_go_by_reference_and_come_back_whole(
    edges: MultimodalEdgeProcessor, value: Any
) -> None:
    type_ = "string" if isinstance(value, str) else "json"
    stored = await made(edges, value, type_=type_)
    assert stored["type"] == type_
    assert await edges.deliver(edge(type_), stored, Budget()) == value
    located = await edges.deliver(
        edge(type_, metadata={"by_reference": True}), stored, Budget(left=0)
    )
    assert located["ref"] == stored["ref"]
    with pytest.raises(MentatError, match="VALUE_TOO_LARGE"):
        await edges.deliver(edge(type_), stored, Budget(left=1000))
    with pytest.raises(MentatError, match="MEDIA_TOO_LARGE"):
        await edges.deliver(edge(type_, metadata={"max_size": "1kB"}), stored, Budget())


async def test_small_values_stay_as_they_are(edges: MultimodalEdgeProcessor) -> None:
    for value in ("text", {"a": [1, None]}, [1], None, 1.5, True):
        assert await made(edges, value, type_="json") == value


async def test_references_inside_json_are_checked_owned_and_located(
    edges: MultimodalEdgeProcessor, tmp_path: Path
) -> None:
    image = await made(edges, png())
    value = {"frames": [{"image": {**image, "path": "/old"}, "at": 1.5}]}
    clean = await made(edges, value, type_="json")
    assert clean == {"frames": [{"image": image, "at": 1.5}]}
    delivered = await edges.deliver(edge("json"), clean, Budget())
    assert delivered["frames"][0]["image"]["ref"] == image["ref"]
    foreign = edge("json", workspace="other")
    with pytest.raises(NotFound, match="REFERENCE_NOT_FOUND"):
        await edges.process_edge_data(foreign, value)


# -- the consumer's side


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({"mime_type": "image/jpeg"}, "MEDIA_TYPE_MISMATCH"),
        ({"max_size": "10B"}, "MEDIA_TOO_LARGE"),
        ({"width": 9}, "MEDIA_CONSTRAINT"),
        ({"mime_type": "image/*", "width": 8, "max_size": "1MB"}, None),
    ],
)
async def test_the_input_pins_constraints_hold(
    edges: MultimodalEdgeProcessor, metadata: dict[str, Any], code: str | None
) -> None:
    reference = await made(edges, png())
    target = edge(metadata=metadata)
    if code is None:
        assert (await edges.deliver(target, reference, Budget()))["ref"] == reference["ref"]
        return
    with pytest.raises(Invalid) as caught:
        await edges.deliver(target, reference, Budget())
    assert caught.value.code == code
    assert caught.value.message.startswith("n.p: ")


async def test_a_medium_of_another_type_is_refused_but_binary_takes_any(
    edges: MultimodalEdgeProcessor,
) -> None:
    reference = await made(edges, png())
    with pytest.raises(Invalid, match="MEDIA_TYPE_MISMATCH"):
        await edges.deliver(edge("audio"), reference, Budget())
    assert (await edges.deliver(edge("binary"), reference, Budget()))["type"] == "image"


async def test_a_plain_value_of_the_wrong_type_is_refused(edges: MultimodalEdgeProcessor) -> None:
    with pytest.raises(Invalid, match="TYPE_MISMATCH"):
        await edges.deliver(edge("number"), "7", Budget())
    with pytest.raises(Invalid, match="none of"):
        await edges.deliver(edge("number", enum=(1, 2)), 3, Budget())


async def test_lists_are_read_inline_or_stored(edges: MultimodalEdgeProcessor) -> None:
    long = ["x" * 100] * 1000
    stored = await made(edges, long, type_="json")
    assert await edges.read_list(stored, "w") == long
    assert await edges.read_list([1, 2], "w") == [1, 2]
    with pytest.raises(Invalid, match="FOREACH_NOT_A_LIST"):
        await edges.read_list({"a": 1}, "w")


# -- the promised names


async def test_create_and_validate_reference(
    edges: MultimodalEdgeProcessor, storage: StorageManager
) -> None:
    uploaded = await storage.upload(png(), {"type": "image"})
    ref_id = uploaded["ref"]["url"].rsplit("/", 1)[1]
    reference = await edges.create_reference(ref_id, "image")
    assert isinstance(reference, MediaReference)
    assert await edges.validate_reference(reference.to_dict()) == reference
    assert (await edges.create_reference(ref_id, PinType.BINARY)).type == "image"
    with pytest.raises(Invalid, match="MEDIA_TYPE_MISMATCH"):
        await edges.create_reference(ref_id, "video")
    with pytest.raises(NotFound):
        await edges.validate_reference(reference.to_dict(), workspace="other")


@pytest.mark.parametrize(
    ("ttl", "kept_s"),
    [("ephemeral", 3600), ("execution", 7 * 86_400), (None, 7 * 86_400), ("pinned", None)],
)
@pytest.mark.parametrize("data", [png(), {"base64": base64.b64encode(png()).decode()}])
async def test_the_pin_says_how_long_its_values_are_kept(
    edges: MultimodalEdgeProcessor,
    storage: StorageManager,
    ttl: str | None,
    kept_s: float | None,
    data: Any,
) -> None:
    reference = await made(edges, data, metadata={"ttl": ttl})
    blob = await storage.get(reference, workspace="w")
    until = None if blob.expires_at is None else blob.expires_at - blob.created_at
    assert until == kept_s


async def test_large_values_and_files_are_kept_as_long(
    edges: MultimodalEdgeProcessor, storage: StorageManager, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    file = await made(edges, {"path": "a.png"}, below=tmp_path, metadata={"ttl": "ephemeral"})
    value = await made(edges, ["x" * 40_000], type_="json", metadata={"ttl": "ephemeral"})
    for reference in (file, value):
        blob = await storage.get(reference, workspace="w")
        assert blob.expires_at == blob.created_at + 3600


async def test_an_expired_reference_is_gone() -> None:
    now = [1000.0]
    async with open_memory(clock=lambda: now[0]) as storage:
        edges = MultimodalEdgeProcessor(storage)

        async def body() -> AsyncIterator[bytes]:
            yield png()

        blob = await storage.store(body(), workspace="w", owner="upload:u", ttl_s=10)
        now[0] += 11
        with pytest.raises(Gone, match="REFERENCE_EXPIRED"):
            await edges.deliver(edge(), blob.reference().to_dict(), Budget())
