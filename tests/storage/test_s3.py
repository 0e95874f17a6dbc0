"""The shipped contract on a real S3 server, and what only S3 can get wrong."""

import uuid
from collections.abc import AsyncIterator

import pytest
from tests.support.seaweed import SeaweedProcess

from mentatlab.storage.port import BlobStore
from mentatlab.storage.s3 import S3Store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_http import Login
from mentatlab.testing.blob_store_contract import BlobStoreContract

BUCKET = "tests"


def login_of(seaweed: SeaweedProcess, bucket: str = BUCKET) -> Login:
    return Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, bucket)


@pytest.fixture
async def bucket(seaweed: SeaweedProcess) -> AsyncIterator[Bucket]:
    bucket = await Bucket(login_of(seaweed)).open()
    yield bucket
    await bucket.aclose()


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}/"


@pytest.fixture
def store(bucket: Bucket, prefix: str) -> S3Store:
    return S3Store(bucket, prefix=prefix)


class TestS3Store(BlobStoreContract):
    @pytest.fixture
    def store(self, bucket: Bucket, prefix: str) -> BlobStore:
        return S3Store(bucket, prefix=prefix)

    async def reopened(self, store: BlobStore) -> BlobStore:
        assert isinstance(store, S3Store)
        return S3Store(store.bucket, prefix=store.prefix, part_size=store.caps.part_size)


class TestS3StoreInSmallParts(TestS3Store):
    """Nearly everything comes in parts."""

    @pytest.fixture
    def store(self, bucket: Bucket, prefix: str) -> BlobStore:
        return S3Store(bucket, prefix=prefix, part_size=5 << 20)
