"""A real server whose media are in a real S3 server: inputs from another bucket, three real agents
in a row, which read by address, and what was found at the upload told at the last one."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.gateway.conftest import write_agent
from tests.support.api import Api, Json, api_of, refused
from tests.support.seaweed import SeaweedProcess
from tests.support.server import up

from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login

SHARED = "shared"
PASS = """\
id: test.pass
version: 1.0.0
inputs: [{name: picture, type: image, metadata: {mimeType: image/*}}]
outputs: [{name: picture, type: image}]
"""
PASS_MAIN = """\
import json, sys
payload = json.load(sys.stdin)
print(json.dumps({"picture": payload["picture"]}))
"""
LOOK = """\
id: test.look
version: 1.0.0
inputs: [{name: picture, type: image, metadata: {width: 48, height: 32}}]
outputs: [{name: seen, type: json}]
"""
LOOK_MAIN = """\
import json, sys, urllib.request
picture = json.load(sys.stdin)["picture"]
request = urllib.request.Request(picture["get"], headers={"Range": "bytes=1-3"})
with urllib.request.urlopen(request) as answer:
    part = answer.read().decode()
with urllib.request.urlopen(picture["get"]) as answer:
    size = len(answer.read())
seen = {"metadata": picture["ref"]["metadata"], "part": part, "size": size}
print(json.dumps({"seen": {**seen, "path": "path" in picture}}))
"""
FLOW = """\
apiVersion: v1beta1
kind: Flow
meta: {id: t.pass, name: pass}
graph:
  nodes:
    - {id: file, type: ui.file-upload, params: {accept: "image/*"}}
    - {id: first, type: test.pass}
    - {id: second, type: test.pass}
    - {id: third, type: test.look}
    - {id: out, type: ui.console}
  edges:
    - {from: file.file, to: first.picture}
    - {from: first.picture, to: second.picture}
    - {from: second.picture, to: third.picture}
    - {from: third.seen, to: out.seen}
"""


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(file, "PNG")
    return file.getvalue()


async def put(seaweed: SeaweedProcess, objects: dict[str, bytes]) -> None:
    login = Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, SHARED)
    bucket = await Bucket(login).open()
    try:
        for name, body in objects.items():
            await bucket.put(name, body, content_type="", fields={}, only_new=False)
    finally:
        await bucket.aclose()


@pytest.fixture(scope="module")
def api(seaweed: SeaweedProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    write_agent(folder / "pass", PASS, PASS_MAIN)
    write_agent(folder / "look", LOOK, LOOK_MAIN)
    objects = {
        "incoming/cat.png": png(),
        "incoming/page.png": b"<html><script>alert(1)</script>",
        "secret/cat.png": png(),
    }
    asyncio.run(put(seaweed, objects))
    prefixes = {"MENTATLAB_S3_PREFIXES": f"default=s3://{SHARED}/incoming/"}
    settings = {**seaweed.environment, "S3_BUCKET": "media-in-buckets", **prefixes}
    home = tmp_path_factory.mktemp("home")
    with up(home, "--agents", folder, env=settings) as server, api_of(server) as api:
        yield api


pytestmark = pytest.mark.usefixtures("well_afterwards")


def seen(api: Api, value: object) -> Json:
    view = api.run(FLOW, file=value)
    assert view["state"] == "succeeded", view
    return api.outputs(view["run_id"])["out.seen"]


def test_what_was_found_at_the_upload_is_told_at_the_third_node(api: Api) -> None:
    ref = api.upload(png(), type="image", filename="cat.png")
    told = seen(api, ref)
    found = told["metadata"]
    assert (found["mimeType"], found["width"], found["height"]) == ("image/png", 48, 32)
    assert (told["part"], told["size"], told["path"]) == ("PNG", len(png()), False)


def test_an_input_in_a_bucket(api: Api) -> None:
    told = seen(api, f"s3://{SHARED}/incoming/cat.png")
    assert told["metadata"]["source"] == f"s3://{SHARED}/incoming/cat.png"
    assert (told["metadata"]["width"], told["size"]) == (48, len(png()))


@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        (f"s3://{SHARED}/secret/cat.png", 403, "S3_PREFIX_FORBIDDEN"),
        (f"s3://{SHARED}/incoming/../secret/cat.png", 403, "S3_PREFIX_FORBIDDEN"),
        ("s3://media-in-buckets/default/x.png", 403, "S3_PREFIX_FORBIDDEN"),
        (f"s3://{SHARED}/incoming/dog.png", 404, "REFERENCE_NOT_FOUND"),
        (f"s3://{SHARED}/incoming/page.png", 415, "MEDIA_TYPE_MISMATCH"),
    ],
)
def test_an_input_that_is_refused(api: Api, address: str, status: int, code: str) -> None:
    answer = api.post("runs", {"flow": FLOW, "inputs": {"file": address}})
    refused(answer, status, code)


def test_a_preview_of_what_lies_in_a_bucket(api: Api) -> None:
    ref = api.upload(png(), filename="cat.png")
    answer = api.http.get(f"/api/v1/storage/{ref}", params={"preview": "thumb", "size": "64"})
    assert answer.status_code == 200  # from here, without a redirect
    assert Image.open(io.BytesIO(answer.content)).size == (48, 32)


def test_a_setting_without_a_server_is_refused(tmp_path: Path) -> None:
    settings = {"MENTATLAB_STORAGE": "local", "MENTATLAB_S3_PREFIXES": "default=s3://shared/a/"}
    with pytest.raises(AssertionError, match="S3_ACCESS_KEY"), up(tmp_path / "h", env=settings):
        pass
