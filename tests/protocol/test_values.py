import pytest

from mentatlab.protocol.media import make_url
from mentatlab.protocol.pins import PinType
from mentatlab.protocol.values import fits, is_object

REF = "blob_01JAB2C3D4E5F6G7H8J9KMNPQR"


def reference(type_: str) -> dict[str, object]:
    return {"type": type_, "ref": {"url": make_url("default", REF), "size": 1}}


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        ("a", "string"),
        (reference("string"), "string"),
        (1, "number"),
        (1.5, "number"),
        (False, "boolean"),
        (None, "json"),
        ([1, {"a": "b"}], "json"),
        (reference("json"), "json"),
        (REF, "image"),
        (make_url("w", REF), "audio"),
        (reference("image"), "image"),
        ({"type": "image", "ref": REF}, "image"),
        (reference("image"), "binary"),
        (reference("binary"), "binary"),
        ({"type": "stream", "stream_id": "st_1"}, "stream"),
    ],
)
def test_fits(value: object, type_: str) -> None:
    assert fits(value, PinType(type_))


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (1, "string"),
        (reference("image"), "string"),
        ("1", "number"),
        (True, "number"),
        (1, "boolean"),
        ("cat.jpg", "image"),
        ("mentat://no", "image"),
        (reference("audio"), "image"),
        (reference("binary"), "image"),
        (reference("json"), "binary"),
        ({"type": "image"}, "image"),
        (None, "image"),
        ([], "stream"),
        ({"type": "list"}, "stream"),
    ],
)
def test_does_not_fit(value: object, type_: str) -> None:
    assert not fits(value, PinType(type_))


def test_objects() -> None:
    assert is_object({})
    assert not is_object([])
