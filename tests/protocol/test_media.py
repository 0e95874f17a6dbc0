import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import (
    MediaReference,
    RefInfo,
    is_ref_id,
    is_reference,
    is_url,
    make_url,
    parse_url,
    ref_id_of,
)
from mentatlab.protocol.pins import PinType

REF = "blob_01JAB2C3D4E5F6G7H8J9KMNPQR"
URL = make_url("default", REF)
OBJECT = {"type": "image", "ref": {"url": URL, "size": 3}}


@pytest.mark.parametrize(
    "form",
    [
        REF,
        URL,
        OBJECT,
        {"ref": REF},
        {"ref": URL},
        MediaReference(type=PinType.IMAGE, ref=RefInfo(url=URL, size=3)),
    ],
)
def test_every_form_of_a_reference_is_read(form: object) -> None:
    assert ref_id_of(form) == REF


@pytest.mark.parametrize(
    "value",
    ["", "blob_1", "mentat://a/b", "mentat:///" + REF, f"mentat://a b/{REF}", 3, None, {}, [REF]],
)
def test_anything_else_is_refused_with_a_hint(value: object) -> None:
    with pytest.raises(Invalid) as refused:
        ref_id_of(value)
    assert refused.value.code == Code.REFERENCE_INVALID
    assert "blob_" in refused.value.hint


def test_the_object_form_leaves_out_what_is_empty() -> None:
    reference = MediaReference(
        type=PinType.VIDEO, ref=RefInfo(url=URL, size=1, blake3="ab", metadata={"fps": 25.0})
    )
    assert reference.to_dict() == {
        "type": "video",
        "ref": {"url": URL, "size": 1, "blake3": "ab", "metadata": {"fps": 25.0}},
    }
    assert is_reference(reference.to_dict())
    assert reference.id == REF


@pytest.mark.parametrize("value", [REF, {"type": "image"}, {"type": "image", "ref": {"url": "x"}}])
def test_what_is_not_the_object_form(value: object) -> None:
    assert not is_reference(value)


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True))
def test_urls_come_back(workspace: str) -> None:
    assert parse_url(make_url(workspace, REF)) == (workspace, REF)


@given(st.text())
def test_no_text_is_both_an_id_and_a_url(text: str) -> None:
    assert not (is_ref_id(text) and is_url(text))
