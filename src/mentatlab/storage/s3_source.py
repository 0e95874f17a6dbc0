"""Reading single objects of any bucket of an S3 server."""

from collections.abc import AsyncIterator

from obstore.exceptions import BaseError

from mentatlab.protocol.errors import Code, NotFound
from mentatlab.storage import s3_errors
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login


class S3Source:
    """With the login of our own bucket; only the bucket's name is another."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._buckets: dict[str, Bucket] = {}

    async def read(self, bucket: str, key: str) -> AsyncIterator[bytes]:
        """A `s3_inputs.Read`."""
        if bucket not in self._buckets:
            self._buckets[bucket] = Bucket(self._login._replace(bucket=bucket))
        try:
            _, stream = await self._buckets[bucket].get(key)
            async for chunk in stream:
                yield chunk
        except NotFound as error:
            raise NotFound(
                Code.REFERENCE_NOT_FOUND,
                f"there is no object s3://{bucket}/{key}",
                hint="look at the key's letters: small and capital ones differ",
            ) from error
        except BaseError as error:
            raise s3_errors.reported(str(error), self._login.endpoint) from error

    async def aclose(self) -> None:
        for bucket in self._buckets.values():
            await bucket.aclose()
