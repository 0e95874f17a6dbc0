"""Whose a bucket is: what has no row in its owner's catalogue is swept, so there is one owner."""

import msgspec

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_objects import TOKEN

NAME = ".owner"


class Owner(msgspec.Struct):
    home: str


async def claim(bucket: Bucket, home: str) -> None:
    """For good; `Conflict(STORE_FOREIGN)` when the bucket is another home's, or somebody else's."""
    mine = msgspec.json.encode(Owner(home))
    try:
        owner = await bucket.read(NAME)
    except NotFound:
        await _refuse_foreign(bucket)
        owner = await _put(bucket, mine)
    if owner != mine:
        raise _refused(
            bucket,
            "belongs to another home of MentatLab",
            "give each home a bucket of its own; to take over what a lost one left, delete the"
            f" object {NAME} of the bucket, then `mentatlab storage rebuild`",
        )


async def _put(bucket: Bucket, mine: bytes) -> bytes:
    """Whose it is then: somebody may have been quicker."""
    try:
        await bucket.put(NAME, mine, content_type="application/json", fields={}, only_new=True)
    except Conflict:
        return await bucket.read(NAME)
    return mine


async def _refuse_foreign(bucket: Bucket) -> None:
    """By the first object whose name does not begin with a dot."""
    async for found in bucket.walk():
        if not found.name.startswith("."):
            if TOKEN not in (await bucket.head(found.name)).fields:
                raise _refused(
                    bucket,
                    f"has objects of others ({found.name[:80]!r})",
                    "give MentatLab a bucket of its own: it removes objects that it does not know",
                )
            return


def _refused(bucket: Bucket, why: str, hint: str) -> Conflict:
    message = f"the bucket {bucket.login.bucket!r} {why}"
    return Conflict(Code.STORE_FOREIGN, message, hint=hint)
