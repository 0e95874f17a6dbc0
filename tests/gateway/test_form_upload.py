"""Forms, however the network cuts them."""

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.gateway.form_upload import FormUpload
from mentatlab.protocol.errors import Invalid

BOUNDARY = b"cut here"
HEADER = 'multipart/form-data; boundary="cut here"'
File = tuple[str, str, dict[str, str], bytes]


def part(head: bytes, body: bytes) -> bytes:
    return b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body


def field(name: str, value: bytes) -> bytes:
    return part(f'name="{name}"'.encode(), value) + b"\r\n"


def file(body: bytes, name: str = "a.png") -> bytes:
    head = f'name="file"; filename="{name}"\r\nContent-Type: image/png'.encode()
    return part(head, body) + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"


async def in_pieces(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        yield data[start:end]


async def parsed(data: bytes, cuts: list[int], header: str = HEADER) -> File:
    form = await FormUpload(header, in_pieces(data, cuts), settings={"ttl"}).open()
    body = b"".join([piece async for piece in form])
    return form.filename, form.content_type, form.fields, body


awkward = st.lists(
    st.sampled_from([b"\r\n", b"--", b"-", b"\r", b"--cut here", b"x", b"\x00\xff"])
).map(b"".join)


@given(body=awkward.filter(lambda b: b"\r\n--cut here" not in b"\r\n" + b), data=st.data())
async def test_however_it_is_cut_the_same_arrives(body: bytes, data: st.DataObject) -> None:
    whole = field("ttl", b"60") + file(body) + field("note", "später".encode()) + END
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12))
    assert await parsed(whole, cuts) == (
        "a.png",
        "image/png",
        {"ttl": "60", "note": "später"},
        body,
    )


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (field("ttl", b"60") + END, "no file"),
        (file(b"a") + file(b"b") + END, "more than one file"),
        (file(b"a") + field("ttl", b"60") + END, "stands after the file"),
        (file(b"a"), "ends before its last boundary"),
        (b"--other\r\n\r\n", "boundary"),
        (b"".join(field(f"f{n}", b"") for n in range(65)) + file(b"a") + END, "64 fields"),
        (field("big", bytes(70_000)) + file(b"a") + END, "'big' has more than 65536 bytes"),
    ],
)
async def test_what_is_wrong_with_a_form_is_told(data: bytes, detail: str) -> None:
    with pytest.raises(Invalid, match="FORM_INVALID") as caught:
        await parsed(data, [len(data) // 2])
    assert detail in caught.value.message


@pytest.mark.parametrize(
    "header", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 300}"]
)
async def test_a_boundary_that_cannot_be_used(header: str) -> None:
    with pytest.raises(Invalid, match="FORM_INVALID"):
        await parsed(file(b"a") + END, [], header)
