"""One bucket: whole objects by obstore, what it cannot do (parts, listings, copies) by S3Http.

Names are those of objects in the bucket. Errors are those of the house.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store as Objects

if TYPE_CHECKING:
    from obstore import GetOptions

from mentatlab.protocol.errors import Code, Conflict, NotFound, Unavailable
from mentatlab.storage import s3_errors
from mentatlab.storage.s3_http import TRIES, Body, S3Http
from mentatlab.storage.s3_login import Login

COPY_PART = 1 << 30  # bytes that one request copies at most; S3 takes 5 GiB
_GATHERED = 512 << 10  # bytes read at once
_LEAVING_S = 0.05
_CHECK_S = 5.0
_NEXT_OBJECTS = {"continuation-token": "NextContinuationToken"}
_PROBE = ".probe/"
_PROBES = (f"{_PROBE}a-b", f"{_PROBE}a/b")


class Found(NamedTuple):
    """What a bucket knows of an object; `fields` are those of the user's metadata."""

    name: str
    size: int
    modified_at: float  # Unix seconds
    content_type: str = ""
    fields: Mapping[str, str] = {}


class Part(NamedTuple):
    number: int
    size: int
    etag: str
    modified_at: float  # Unix seconds


class OpenUpload(NamedTuple):
    name: str
    upload_id: str
    begun_at: float  # Unix seconds


class Got(NamedTuple):
    found: Found
    stream: AsyncIterator[bytes]


class Bucket:
    """`minds_conditions`: the server refuses to replace an object when told so. `lists_in_order`:
    of names, as S3 does. `open` learns both.
    """

    def __init__(self, login: Login, *, tries: int = TRIES, copy_part: int = COPY_PART) -> None:
        self.login = login
        self.minds_conditions = self.lists_in_order = True
        self._copy_part = copy_part
        self.http = S3Http(login, tries=tries)
        self._objects = Objects(
            login.bucket,
            endpoint=login.endpoint,
            access_key_id=login.access_key,
            secret_access_key=login.secret_key,
            region=login.region,
            disable_bulk_delete=True,
            client_options={
                "allow_http": login.endpoint.startswith("http://"),
                "connect_timeout": "5s",
                "read_timeout": "60s",
                "timeout": "7d",  # of a whole transfer: a viewer may pause
            },
            retry_config={
                "max_retries": tries - 1,
                "retry_timeout": timedelta(seconds=30),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )

    async def aclose(self) -> None:
        await self.http.aclose()
        # obstore's threads may still hold Python objects of the last call. An interpreter that
        # ends in that moment is aborted, and there is nothing to wait for.
        await asyncio.sleep(_LEAVING_S)

    # --- whole objects

    async def put(
        self, name: str, body: Body, *, content_type: str, fields: Mapping[str, str], only_new: bool
    ) -> None:
        """Atomic. `Conflict(KEY_EXISTS)` when `only_new` and there is one."""
        with self._translated():
            await obstore.put_async(
                self._objects,
                name,
                body,
                attributes={"Content-Type": content_type, **fields},
                mode="create" if only_new and self.minds_conditions else "overwrite",
                use_multipart=False,
            )

    async def get(self, name: str, start: int = 0, stop: int | None = None) -> Got:
        """Bytes from `start` up to `stop`, exclusive; without it all."""
        options: GetOptions = {} if stop is None else {"range": (start, stop)}
        with self._translated():
            result = await obstore.get_async(self._objects, name, options=options)
        fields, meta = dict(result.attributes), result.meta
        content_type = fields.pop("Content-Type", "")
        modified = meta["last_modified"].timestamp()
        found = Found(name, meta["size"], modified, content_type, fields)
        return Got(found, result.stream(_GATHERED))

    async def read(self, name: str) -> bytes:
        """For small ones."""
        _, stream = await self.get(name)
        with self._translated():
            return b"".join([chunk async for chunk in stream])

    async def head(self, name: str) -> Found:
        headers = (await self.http.call("HEAD", name)).headers
        prefix = "x-amz-meta-"
        return Found(
            name,
            int(headers["content-length"]),
            parsedate_to_datetime(headers["last-modified"]).timestamp(),
            headers.get("content-type", ""),
            {n.removeprefix(prefix): v for n, v in headers.items() if n.startswith(prefix)},
        )

    async def delete(self, name: str) -> None:
        with self._translated(), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._objects, name)

    async def walk(self, prefix: str = "", after: str = "") -> AsyncIterator[Found]:
        """In order of names, behind `after`; without type and fields."""
        listing = self._flat if self.lists_in_order else self._folders
        async for found in listing(prefix, after):
            if not found.name.endswith("/"):  # a folder, to servers that have such
                yield found

    async def _flat(self, prefix: str, after: str) -> AsyncIterator[Found]:
        query = {"list-type": "2", "prefix": prefix} | ({"start-after": after} if after else {})
        async for page in self.http.pages(query, _NEXT_OBJECTS):
            for item in page.iterfind("{*}Contents"):
                yield _found(item)

    async def _folders(self, prefix: str, after: str) -> AsyncIterator[Found]:
        """For a server that walks its folders: `a/1` comes before `a-b` there. One folder at a
        time is held."""
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        entries: dict[str, Found | None] = {}
        async for page in self.http.pages(query, _NEXT_OBJECTS):
            entries |= {_text(item, "Prefix"): None for item in page.iterfind("{*}CommonPrefixes")}
            entries |= {(f := _found(item)).name: f for item in page.iterfind("{*}Contents")}
        for name, found in sorted(entries.items()):
            if found is not None and name > after:
                yield found
            elif found is None and (name > after or after.startswith(name)):
                async for inner in self._folders(name, after):
                    yield inner

    async def copy(
        self, source: Found, target: str, *, content_type: str, fields: Mapping[str, str]
    ) -> None:
        """As atomic as `put` of a new object."""
        if source.size <= self._copy_part:
            headers = _described(content_type, fields) | self._condition()
            headers["x-amz-copy-source"] = self._place(source.name)
            headers["x-amz-metadata-directive"] = "REPLACE"
            await self.http.call("PUT", target, headers=headers)
            return
        upload_id = await self.begin(target, content_type=content_type, fields=fields)
        try:
            await self._copy_parts(source, target, upload_id)
            await self.complete(target, upload_id, await self.parts(target, upload_id))
        except BaseException:
            await asyncio.shield(self.abort(target, upload_id))
            raise

    async def _copy_parts(self, source: Found, target: str, upload_id: str) -> None:
        for number, start in enumerate(range(0, source.size, self._copy_part), 1):
            stop = min(start + self._copy_part, source.size)
            headers = {
                "x-amz-copy-source": self._place(source.name),
                "x-amz-copy-source-range": f"bytes={start}-{stop - 1}",
            }
            query = {"partNumber": str(number), "uploadId": upload_id}
            await self.http.call("PUT", target, query, headers=headers)

    def _place(self, name: str) -> str:
        return self.login.target(name, {}).path

    # --- objects in parts

    async def begin(self, name: str, *, content_type: str, fields: Mapping[str, str]) -> str:
        headers = _described(content_type, fields)
        answer = await self.http.call("POST", name, {"uploads": ""}, headers=headers)
        return _text(answer.xml, "UploadId")

    async def put_part(self, name: str, upload_id: str, number: int, body: Sequence[Body]) -> None:
        query = {"partNumber": str(number), "uploadId": upload_id}
        await self.http.call("PUT", name, query, body=body)

    async def parts(self, name: str, upload_id: str) -> list[Part]:
        """By number; `NotFound(UPLOAD_NOT_FOUND)`."""
        following = {"part-number-marker": "NextPartNumberMarker"}
        pages = self.http.pages({"uploadId": upload_id}, following, name)
        return [_part(item) async for page in pages for item in page.iterfind("{*}Part")]

    async def complete(self, name: str, upload_id: str, parts: list[Part]) -> None:
        """Atomic; `Conflict(KEY_EXISTS)`, `NotFound(UPLOAD_NOT_FOUND)`."""
        items = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{part.etag}</ETag></Part>"
            for part in parts
        )
        body = f"<CompleteMultipartUpload>{items}</CompleteMultipartUpload>".encode()
        headers = {"content-type": "application/xml"} | self._condition()
        await self.http.call("POST", name, {"uploadId": upload_id}, headers=headers, body=[body])

    async def abort(self, name: str, upload_id: str) -> None:
        """Fine when it is gone."""
        with contextlib.suppress(NotFound):
            await self.http.call("DELETE", name, {"uploadId": upload_id})

    async def open_uploads(self, prefix: str) -> AsyncIterator[OpenUpload]:
        following = {"key-marker": "NextKeyMarker", "upload-id-marker": "NextUploadIdMarker"}
        async for page in self.http.pages({"uploads": "", "prefix": prefix}, following):
            for item in page.iterfind("{*}Upload"):
                begun = _seconds(_text(item, "Initiated"))
                yield OpenUpload(_text(item, "Key"), _text(item, "UploadId"), begun)

    # --- signed for others

    def signed_url(
        self, method: str, name: str, query: Mapping[str, str], *, expires_s: float
    ) -> str:
        """At the public endpoint."""
        target = self.login.target(name, query, public=True)
        now = datetime.now(UTC)
        return self.login.signer.presigned(method, target, now=now, expires_s=expires_s)

    # --- the bucket itself

    def _condition(self) -> dict[str, str]:
        return {"if-none-match": "*"} if self.minds_conditions else {}

    async def check(self) -> None:
        """At once: `Unavailable(STORE_UNAVAILABLE)` when it is away, or not ours to list."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._list_one(tries=1)
        except TimeoutError as error:
            raise s3_errors.unreachable(self.login.endpoint, "no answer in time") from error

    async def open(self) -> "Bucket":
        """As `check`, with some patience; the bucket is made when there is none."""
        try:
            await self._list_one()
        except Unavailable as error:
            if "NoSuchBucket" not in error.message:
                raise
            await self._create(error)
        await self._learn()
        return self

    async def _list_one(self, tries: int | None = None) -> None:
        await self.http.call("GET", query={"list-type": "2", "max-keys": "1"}, tries=tries)

    async def _learn(self) -> None:
        """By two small objects, which stay."""
        for name in (*_PROBES, _PROBES[0]):
            self.minds_conditions = not await self._put_probe(name)
        names = [found.name async for found in self._flat(_PROBE, "")]
        self.lists_in_order = names == sorted(names)

    async def _put_probe(self, name: str) -> bool:
        """Whether it could be put, as new."""
        try:
            await self.http.call("PUT", name, headers={"if-none-match": "*"})
        except Conflict:
            return False
        except Unavailable as error:
            if "501" not in error.message:
                raise
        return True

    async def _create(self, absent: Unavailable) -> None:
        region = self.login.region
        told = "" if region in ("us-east-1", "auto") else _LOCATION.format(region)
        try:
            await self.http.call("PUT", body=[told.encode()])
        except Unavailable as error:
            raise absent if "AccessDenied" in error.message else error from error

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except AlreadyExistsError as error:
            raise Conflict(Code.KEY_EXISTS, "the bucket has such an object already") from error
        except (BaseError, FileNotFoundError) as error:
            raise s3_errors.reported(str(error), self.login.endpoint) from error


def _described(content_type: str, fields: Mapping[str, str]) -> dict[str, str]:
    headers = {f"x-amz-meta-{field}": value for field, value in fields.items()}
    return headers | {"content-type": content_type}


_LOCATION = (
    "<CreateBucketConfiguration><LocationConstraint>{}</LocationConstraint>"
    "</CreateBucketConfiguration>"
)


def _found(item: ElementTree.Element) -> Found:
    modified = _seconds(_text(item, "LastModified"))
    return Found(_text(item, "Key"), int(_text(item, "Size")), modified)


def _part(item: ElementTree.Element) -> Part:
    modified = _seconds(_text(item, "LastModified"))
    size, etag = int(_text(item, "Size")), _text(item, "ETag")
    return Part(int(_text(item, "PartNumber")), size, etag, modified)


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp() if iso else 0.0
