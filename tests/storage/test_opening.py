"""Which store the settings ask for, and opening it."""

import builtins
import sys
import uuid
from pathlib import Path

import pytest
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Conflict, Invalid, Unavailable
from mentatlab.storage import opening, sources
from mentatlab.storage.opening import open_storage, read_choice
from mentatlab.storage.s3_login import Login

KEYS = {"S3_ACCESS_KEY": "who", "S3_SECRET_KEY": "quiet"}


def test_the_home_unless_told_otherwise() -> None:
    assert read_choice({}) == "local"
    assert read_choice({"MENTATLAB_STORAGE": "memory", "S3_ENDPOINT": "http://a"}) == "memory"
    assert read_choice({"MENTATLAB_STORAGE": "local", "S3_ENDPOINT": "http://a"}) == "local"


def test_a_bucket() -> None:
    endpoint = {"S3_ENDPOINT": "http://127.0.0.1:8333/"}
    assert read_choice(KEYS | endpoint) == Login("http://127.0.0.1:8333", "who", "quiet")
    environ = KEYS | {
        "MENTATLAB_STORAGE": "s3",
        "S3_BUCKET": "b",
        "S3_REGION": "eu-west-1",
        "S3_PUBLIC_ENDPOINT": "https://media.example.org",
    }
    login = Login(
        "https://s3.eu-west-1.amazonaws.com",
        "who",
        "quiet",
        bucket="b",
        region="eu-west-1",
        public_endpoint="https://media.example.org",
    )
    assert read_choice(environ) == login
    assert "quiet" not in repr(login)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"MENTATLAB_STORAGE": "tape"}, "MENTATLAB_STORAGE"),
        ({"MENTATLAB_STORAGE": "s3"}, "S3_ACCESS_KEY"),
        ({"S3_ENDPOINT": "http://a", "S3_ACCESS_KEY": "k"}, "S3_SECRET_KEY"),
        (KEYS | {"S3_ENDPOINT": "127.0.0.1:8333"}, "S3_ENDPOINT"),
        (KEYS | {"S3_ENDPOINT": "http://a/bucket"}, "S3_ENDPOINT"),
        (KEYS | {"S3_ENDPOINT": "http://a", "S3_PUBLIC_ENDPOINT": "ftp://a"}, "S3_PUBLIC_ENDPOINT"),
    ],
)
def test_what_is_not_usable_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(Invalid) as error:
        read_choice(environ)
    assert error.value.code is Code.BAD_SETTING
    assert named in error.value.message


async def test_the_places_describe_themselves(seaweed: SeaweedProcess) -> None:
    assert await opening.describe("local") == "in the home"
    assert "memory" in await opening.describe("memory")
    login = read_choice(seaweed.environment | {"S3_BUCKET": "not-there"})
    with pytest.raises(Unavailable):
        await opening.describe(login)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_memory_forgets(tmp_path: Path) -> None:
    async with open_storage("memory", tmp_path, home_key="k") as (manager, segments):
        assert segments is None
        await manager.check()
        await manager.store(sources.once(b"x"), workspace="w")
    assert files(tmp_path) == []


async def test_a_bucket_is_opened_and_kept(seaweed: SeaweedProcess, tmp_path: Path) -> None:
    login = read_choice(seaweed.environment | {"S3_BUCKET": f"b-{uuid.uuid4().hex}"})
    async with open_storage(login, tmp_path, home_key="k") as (manager, segments):
        blob = await manager.store(sources.once(b"media"), workspace="w")
        assert segments is not None
        await segments.put("sg_1", sources.once(b"sealed"))
        assert (await manager.life.sweep()).orphans == 0
    async with open_storage(login, tmp_path, home_key="k") as (manager, segments):
        assert (await manager.get(blob.id, workspace="w")).blake3 == blob.blake3
        assert segments is not None
        assert (await segments.head("sg_1")).size == 6
        assert await opening.describe(login) == f"the bucket {login.bucket} of {login.endpoint}"
    with pytest.raises(Conflict) as error:
        async with open_storage(login, tmp_path / "other", home_key="another's"):
            pass
    assert error.value.code is Code.STORE_FOREIGN


async def test_a_catalogue_that_cannot_be_opened_leaves_nothing_open(
    seaweed: SeaweedProcess, tmp_path: Path
) -> None:
    login = read_choice(seaweed.environment | {"S3_BUCKET": f"b-{uuid.uuid4().hex}"})
    (tmp_path / "catalog.db").mkdir()
    with pytest.raises(Exception, match=r"catalog|database"):
        async with open_storage(login, tmp_path, home_key="k"):
            pass


async def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("mentatlab.storage.s3")]:
        monkeypatch.delitem(sys.modules, name)
    importing = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("obstore"):
            raise ModuleNotFoundError("No module named 'obstore'")
        return importing(name, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Invalid) as error:
        async with open_storage(Login("http://a", "k", "s"), tmp_path, home_key="k"):
            pass
    assert error.value.code is Code.MISSING_EXTRA
    assert "mentatlab[server,s3]" in error.value.hint
