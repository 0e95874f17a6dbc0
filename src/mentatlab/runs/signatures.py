"""How webhooks are signed: `t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`. Pure."""

import hashlib
import hmac
import re

from mentatlab.protocol.errors import Code, Unauthenticated

HEADER = "X-Mentat-Signature"
WINDOW_S = 300
"""A signature is good for so long before and after its time."""
_FORM = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")


def sign(secret: str, body: bytes, *, at: int) -> str:
    digest = hmac.digest(secret.encode(), b"%d." % at + body, hashlib.sha256)
    return f"t={at},v1={digest.hex()}"


def verify(secret: str, body: bytes, signature: str, *, now: float) -> None:
    """`Unauthenticated(WEBHOOK_SIGNATURE)`; compared in constant time."""
    found = _FORM.fullmatch(signature)
    if found is None:
        raise _refused(f"the header {HEADER} is missing, or has not its form")
    at = int(found[1])
    if not hmac.compare_digest(sign(secret, body, at=at), signature):
        raise _refused("the signature does not fit the body and the webhook's secret")
    if abs(now - at) > WINDOW_S:
        raise _refused(f"it was signed {abs(now - at):.0f} s from now, over {WINDOW_S}")


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(
        Code.WEBHOOK_SIGNATURE,
        message,
        hint=f"send {HEADER}: t=<unix seconds>,v1=<hex HMAC-SHA256 of t, a dot and the raw body>",
    )
