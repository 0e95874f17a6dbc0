"""Which S3 server, which bucket, and who we are there. Pure."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.storage.s3_signer import Signer, Target, encode_path

BUCKET = "mentatlab-media"
REGION = "us-east-1"


class Login(NamedTuple):
    """One bucket of one server, and who we are there.

    `public_endpoint` is where clients reach the same server; "" = where we do.
    """

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = BUCKET
    region: str = REGION
    public_endpoint: str = ""

    def __repr__(self) -> str:
        return f"Login({self.bucket} at {self.endpoint})"

    @property
    def signer(self) -> Signer:
        return Signer(self.access_key, self.secret_key, self.region)

    def target(self, name: str, query: Mapping[str, str], *, public: bool = False) -> Target:
        """An object of the bucket, in path style; "" is the bucket itself."""
        endpoint = (public and self.public_endpoint) or self.endpoint
        path = encode_path(self.bucket, name) if name else encode_path(self.bucket)
        return Target(endpoint, path, query)


def read_login(environ: Mapping[str, str]) -> Login:
    """From `S3_ENDPOINT S3_PUBLIC_ENDPOINT S3_ACCESS_KEY S3_SECRET_KEY S3_BUCKET S3_REGION`.

    Without an endpoint it is AWS. `Invalid(BAD_SETTING)` names the variable that is wrong.
    """
    region = environ.get("S3_REGION") or REGION
    return Login(
        endpoint=_endpoint(environ, "S3_ENDPOINT") or f"https://s3.{region}.amazonaws.com",
        access_key=_needed(environ, "S3_ACCESS_KEY"),
        secret_key=_needed(environ, "S3_SECRET_KEY"),
        bucket=environ.get("S3_BUCKET") or BUCKET,
        region=region,
        public_endpoint=_endpoint(environ, "S3_PUBLIC_ENDPOINT"),
    )


def _endpoint(environ: Mapping[str, str], name: str) -> str:
    text = (environ.get(name) or "").rstrip("/")
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path):
        raise Invalid(
            Code.BAD_SETTING,
            f"{name}={text!r} is not usable",
            hint="write scheme, host and port only, as in http://127.0.0.1:8333",
        )
    return text


def _needed(environ: Mapping[str, str], name: str) -> str:
    if value := environ.get(name):
        return value
    raise Invalid(
        Code.BAD_SETTING,
        f"storage is in S3, and {name} is not set",
        hint="set S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY; or MENTATLAB_STORAGE=local",
    )
