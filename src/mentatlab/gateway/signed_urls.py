"""Addresses of blobs that need no other credential: for a CDN, an `<img>`, an agent elsewhere.

    /api/v1/storage/blob_…?e=1795435200&k=home&w=default&s=<signature>        (&d=attachment)

The signature (HMAC-SHA256, base64url) covers method, ref, expiry, key id, disposition and
workspace. The expiry `e` (Unix seconds) stands on a grid of 15 minutes, so that the same link
asked for twice is the same bytes, and a cache keeps it once. The workspace `w` stands in the
address so that a forged one is refused before anything is looked up. A key is revoked by taking
it out of the settings. Pure: the time is an argument.
"""

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast
from urllib.parse import urlencode

from mentatlab.protocol.errors import Code, Forbidden, Gone, Invalid
from mentatlab.protocol.media import is_ref_id

Method = Literal["GET", "HEAD"]
Disposition = Literal["", "inline", "attachment"]
"""`inline` changes nothing for types that a browser could run."""

PREFIX = "/api/v1/storage/"
GRID_S = 900
MAX_LIFETIME_S = 7 * 86_400
LEAST_SECRET = 32
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,16}")


class Grant(NamedTuple):
    """What a signed address gives: `GET` also covers HEAD."""

    method: Method
    ref: str
    workspace: str
    expires: int  # Unix seconds
    disposition: Disposition = ""


class Verified(NamedTuple):
    grant: Grant
    key_id: str


class UrlKeys:
    """Secrets by key id: the first one signs, all of them verify."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = {key_id: secret.encode() for key_id, secret in secrets.items()}

    def sign(self, grant: Grant) -> str:
        """Its path and query."""
        key_id = next(iter(self._secrets))
        shown = {"e": str(grant.expires), "k": key_id}
        shown |= {"d": grant.disposition} if grant.disposition else {}
        signature = self._signature(grant, key_id)
        query = urlencode(shown | {"w": grant.workspace, "s": signature})
        return f"{PREFIX}{grant.ref}?{query}"

    def verify(self, method: str, ref: str, asked: Mapping[str, str], *, now: float) -> Verified:
        """`asked` are the query's parameters, of which those that are not signed are left alone.

        `Forbidden(SIGNATURE_INVALID)`, `Gone(SIGNATURE_EXPIRED)`
        """
        for signed in ("HEAD", "GET") if method == "HEAD" else (method,):
            grant = Grant(
                cast("Method", signed),
                ref,
                asked.get("w", ""),
                _seconds(asked.get("e", "")),
                cast("Disposition", asked.get("d", "")),
            )
            key_id = asked.get("k", "")
            ours = self._signature(grant, key_id).encode()
            if hmac.compare_digest(ours, asked.get("s", "").encode()) and key_id in self._secrets:
                return Verified(_current(grant, now), key_id)
        raise Forbidden(
            Code.SIGNATURE_INVALID,
            "the signature does not fit this address",
            hint="use it exactly as it was given, or have it signed again",
        )

    def _signature(self, grant: Grant, key_id: str) -> str:
        """As costly for a key that is not known. The workspace is last: it alone is free text."""
        fields = (grant.method, grant.ref, str(grant.expires), key_id)
        text = "\n".join((*fields, grant.disposition, grant.workspace))
        digest = hmac.digest(self._secrets.get(key_id, b"-"), text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


NO_KEYS = UrlKeys({})
"""Nothing is signed, and no signature fits."""


class UrlSigner:
    """Absolute addresses of this server; `clock` gives Unix seconds."""

    def __init__(self, keys: UrlKeys, base_url: str, clock: Callable[[], float]) -> None:
        self._keys, self._base_url, self._clock = keys, base_url.rstrip("/"), clock

    def sign(self, workspace: str, ref: str, expires_s: float) -> str:
        """Good for a GET of `ref` for at least `expires_s` seconds, in any of its ranges."""
        expires = expiry(self._clock(), expires_s)
        return self._base_url + self._keys.sign(Grant("GET", ref, workspace, expires))


def expiry(now: float, lifetime_s: float) -> int:
    """The first point of the grid at which at least `lifetime_s` have passed; Unix seconds."""
    return math.ceil((now + lifetime_s) / GRID_S) * GRID_S


def signed_ref(path: str, asked: Mapping[str, str]) -> str | None:
    """The blob that an address with a signature is about."""
    ref = path.removeprefix(PREFIX)
    return ref if "s" in asked and ref != path and is_ref_id(ref) else None


def own_keys(secret: str) -> UrlKeys:
    """Made of the home's key, or of the secret that several servers share."""
    return UrlKeys({"home": hashlib.sha256(f"mentatlab urls\0{secret}".encode()).hexdigest()})


def parse_keys(text: str) -> UrlKeys:
    """Of `kid1:secret1,kid2:secret2`. `Invalid(BAD_SETTING)`"""
    secrets: dict[str, str] = {}
    for part in text.split(","):
        key_id, _, secret = part.strip().partition(":")
        if not _KEY_ID.fullmatch(key_id) or key_id in secrets or len(secret) < LEAST_SECRET:
            raise Invalid(
                Code.BAD_SETTING,
                f"{key_id[:16]!r} in the keys of signed addresses is not usable",
                hint="write ID:SECRET, several with commas between them: each ID once, of letters, "
                f"digits, _ and -; SECRET of at least {LEAST_SECRET} characters",
            )
        secrets[key_id] = secret
    return UrlKeys(secrets)


def _seconds(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 12 else 0


def _current(grant: Grant, now: float) -> Grant:
    if grant.expires <= now:
        raise Gone(Code.SIGNATURE_EXPIRED, "this address has expired", hint="have it signed again")
    return grant
