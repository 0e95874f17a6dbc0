"""AWS Signature Version 4 for S3, in headers and in query strings. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote, urlsplit

UNSIGNED = "UNSIGNED-PAYLOAD"
LONGEST_S = 7 * 86_400  # what S3 allows a presigned URL to live
_ALGORITHM = "AWS4-HMAC-SHA256"


class Target(NamedTuple):
    """Where a request goes: scheme and host, the path percent-encoded once, and its query."""

    endpoint: str  # `https://host[:port]`
    path: str
    query: Mapping[str, str] = {}

    @property
    def host(self) -> str:
        """As clients send it: without the port that goes without saying."""
        parts = urlsplit(self.endpoint)
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        return (parts.hostname or "") if parts.port in (None, usual) else parts.netloc

    @property
    def url(self) -> str:
        query = canonical_query(self.query)
        return f"{self.endpoint}{self.path}{'?' if query else ''}{query}"


class Signer(NamedTuple):
    access_key: str
    secret_key: str
    region: str

    def headers(
        self,
        method: str,
        target: Target,
        *,
        now: datetime,
        payload: str,
        extra: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """`extra` and what authorises the request; `payload` is its body's SHA-256 in hex.

        The server checks the body against it, so that bytes damaged on the way are refused.
        """
        headers = {name.lower(): value for name, value in (extra or {}).items()}
        headers |= {"x-amz-date": _stamp(now), "x-amz-content-sha256": payload}
        signed = headers | {"host": target.host}
        signature = self._signature(method, target, signed, now, payload)
        headers["authorization"] = (
            f"{_ALGORITHM} Credential={self.access_key}/{self._scope(now)},"
            f"SignedHeaders={_names(signed)},Signature={signature}"
        )
        return headers

    def presigned(self, method: str, target: Target, *, now: datetime, expires_s: float) -> str:
        """A URL that whoever has it may call once or often, until it expires."""
        signed = {"host": target.host}
        query = {
            **target.query,
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{self.access_key}/{self._scope(now)}",
            "X-Amz-Date": _stamp(now),
            "X-Amz-Expires": str(min(max(int(expires_s), 1), LONGEST_S)),
            "X-Amz-SignedHeaders": _names(signed),
        }
        target = target._replace(query=query)
        signature = self._signature(method, target, signed, now, UNSIGNED)
        return f"{target.url}&X-Amz-Signature={signature}"

    def _signature(
        self, method: str, target: Target, signed: Mapping[str, str], now: datetime, payload: str
    ) -> str:
        lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
        request = "\n".join(
            (method, target.path, canonical_query(target.query), lines, _names(signed), payload)
        )
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join((_ALGORITHM, _stamp(now), self._scope(now), digest))
        return _hmac(self._key(now), text).hex()

    def _scope(self, now: datetime) -> str:
        return f"{now:%Y%m%d}/{self.region}/s3/aws4_request"

    def _key(self, now: datetime) -> bytes:
        key = f"AWS4{self.secret_key}".encode()
        for word in (f"{now:%Y%m%d}", self.region, "s3", "aws4_request"):
            key = _hmac(key, word)
        return key


def encode_path(*segments: str) -> str:
    """`/a/b`, each character percent-encoded once but the unreserved ones and slashes."""
    return "/" + "/".join(quote(segment, safe="/-_.~") for segment in segments)


def canonical_query(query: Mapping[str, str]) -> str:
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query.items())
    return "&".join(f"{key}={value}" for key, value in pairs)


def _names(headers: Mapping[str, str]) -> str:
    return ";".join(sorted(headers))


def _stamp(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%SZ}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
