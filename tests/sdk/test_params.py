"""An agent's params as one typed value."""

from typing import Annotated

import msgspec
import pytest

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.params import read_params


class Params(msgspec.Struct):
    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    labels: list[str] | None = None


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, Params()),
        ({"image": {"path": "x"}, "top_k": 2}, Params(top_k=2)),
        ({"top_k": 2.0, "labels": ["a"]}, Params(top_k=2, labels=["a"])),
        ({"top_k": None}, Params()),
        ({"top_k": "3"}, Params(top_k=3)),
    ],
)
def test_reads(inputs: dict[str, object], expected: Params) -> None:
    assert read_params(inputs, Params) == expected


@pytest.mark.parametrize("inputs", [{"top_k": 0}, {"top_k": 1.5}, {"labels": "cat"}])
def test_says_which_field_is_wrong(inputs: dict[str, object]) -> None:
    with pytest.raises(Invalid, match=next(iter(inputs))) as caught:
        read_params(inputs, Params)
    assert caught.value.code == Code.BAD_PARAM
    assert "top_k" in caught.value.hint
