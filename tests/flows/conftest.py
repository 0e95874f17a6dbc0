from collections.abc import Callable
from typing import Any

import pytest

from mentatlab.flows import Flow, Lookup, Manifest, load_flow, load_manifest


def pin(name: str, type_: str, **fields: Any) -> dict[str, Any]:
    metadata = {k: fields.pop(k) for k in list(fields) if k not in ("required", "default", "enum")}
    return {"name": name, "type": type_, **fields, "metadata": metadata}


AGENTS = [
    {
        "id": "t.echo",
        "inputs": [pin("text", "string")],
        "outputs": [pin("text", "string")],
    },
    {
        "id": "t.frames",
        "inputs": [
            pin("video", "video", mimeType="video/*", maxDuration=60),
            pin("every_s", "number", default=1.0),
        ],
        "outputs": [pin("frame", "stream", items="image", mimeType="image/jpeg", width=640)],
    },
    {
        "id": "t.detect",
        "inputs": [
            pin("image", "image", mimeType="image/jpeg,image/png"),
            pin("model", "string", required=False, enum=["a", "b"]),
        ],
        "outputs": [pin("boxes", "json"), pin("annotated", "image", mimeType="image/png")],
        "resources": {"max_concurrent": 3, "cpu": 1},
    },
    {
        "id": "t.collectall",
        "inputs": [pin("items", "json")],
        "outputs": [pin("report", "json")],
    },
    {
        "id": "t.listen",
        "inputs": [pin("sound", "stream", items="audio", sampleRate=16000)],
        "outputs": [pin("words", "stream", items="json"), pin("all", "string")],
    },
    {
        "id": "t.store",
        "inputs": [pin("bytes", "binary"), pin("name", "string", required=False)],
        "outputs": [pin("size", "number")],
    },
    {
        "id": "t.record",
        "inputs": [],
        "outputs": [pin("sound", "audio", sampleRate=44100, duration=90.0), pin("raw", "stream")],
    },
    {
        "id": "t.join",
        "inputs": [pin("a", "string"), pin("b", "string")],
        "outputs": [pin("text", "string")],
    },
]
MANIFESTS = {a["id"]: load_manifest({"version": "1.0.0", **a}) for a in AGENTS}


@pytest.fixture(scope="session")
def lookup() -> Lookup:
    def find(name: str) -> Manifest | None:
        return MANIFESTS.get(name.removesuffix(":1.0.0"))

    return find


@pytest.fixture(scope="session")
def flow_of() -> Callable[..., Flow]:
    """`flow_of({"n": "t.echo"}, "n.text > m.text")`; a node is a type or a type with fields."""

    def make(nodes: dict[str, str | dict[str, Any]], *edges: str, **fields: Any) -> Flow:
        listed = [
            {"id": id_, **({"type": n} if isinstance(n, str) else n)} for id_, n in nodes.items()
        ]
        wires = [dict(zip(("from", "to"), e.split(" > "), strict=True)) for e in edges]
        document = {
            "apiVersion": "v1beta1",
            "kind": "Flow",
            "meta": {"id": "test"},
            "graph": {"nodes": listed, "edges": wires},
            **fields,
        }
        return load_flow(document)

    return make
