"""Secrets at rest, and the mask over what agents say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound, Unavailable
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.secrets import Mask, Seal, SecretStore
from mentatlab.sqlite import Database


async def test_what_is_set_is_given_to_its_workspace_only(tmp_path: Path):
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        store = SecretStore(database, Seal("k"))
        await store.put("TOKEN", "first-one", workspace="a", now=1.0)
        await store.put("TOKEN", "hunter-22", workspace="a", now=2.0)
        assert await store.secrets_for("a", ["TOKEN"]) == {"TOKEN": "hunter-22"}
        (info,) = await store.list(workspace="a")
        assert (info.name, info.created_at, info.updated_at) == ("TOKEN", 1.0, 2.0)
        assert await store.list(workspace="b") == []
        assert await store.secrets_for("b", []) == {}
        with pytest.raises(Invalid, match="NONE, TOKEN") as missing:
            await store.secrets_for("b", ["TOKEN", "NONE"])
        assert missing.value.code is Code.SECRET_MISSING
        await store.delete("TOKEN", workspace="a")
        with pytest.raises(NotFound):
            await store.delete("TOKEN", workspace="a")
    assert b"hunter-22" not in (tmp_path / "runs.db").read_bytes()


async def test_another_key_opens_nothing(tmp_path: Path):
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        await SecretStore(database, Seal("k")).put("TOKEN", "hunter-22", workspace="a", now=1.0)
        with pytest.raises(Unavailable) as refused:
            await SecretStore(database, Seal("other")).secrets_for("a", ["TOKEN"])
        assert refused.value.code is Code.SECRET_UNREADABLE


def test_what_is_sealed_for_one_place_opens_at_no_other():
    seal = Seal("k")
    sealed = seal.close("hunter-22", "here")
    assert seal.open(sealed, "here") == "hunter-22"
    with pytest.raises(Unavailable):
        seal.open(sealed, "there")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lower", "long enough"),
        ("PATH", "long enough"),
        ("MENTATLAB_TOKEN_SECRET", "long enough"),
        ("A" * 101, "long enough"),
        ("SHORT", "abc"),
        ("LONG", "a" * 32_769),
        ("NUL", "abc\0def"),
    ],
)
async def test_names_and_values_that_cannot_be_secrets(tmp_path: Path, name: str, value: str):
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        with pytest.raises(MentatError) as refused:
            await SecretStore(database, Seal("k")).put(name, value, workspace="a", now=1.0)
    assert refused.value.code is Code.SECRET_INVALID
    assert value not in str(refused.value)


@given(st.text(min_size=4, max_size=20), st.text(max_size=30), st.text(max_size=30))
def test_no_secret_gets_through_a_mask(secret: str, before: str, after: str):
    mask = Mask([secret])
    text = before + secret + after
    if secret not in "***":
        assert secret not in mask.text(text).replace("***", "\0")
        assert secret not in str(mask.value({"a": [text], "b": 1})).replace("***", "\0")


def test_lines_of_a_longer_secret_are_masked_one_by_one():
    mask = Mask(["-----BEGIN-----\nabcdefgh\n-----END-----\n"])
    assert mask.text("read abcdefgh") == "read ***"
    assert mask.value({"abcdefgh": None, "n": [1, "x abcdefgh"]}) == {
        "***": None,
        "n": [1, "x ***"],
    }
    assert Mask([]).value({"a": "b"}) == {"a": "b"}
