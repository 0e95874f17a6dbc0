"""What a stream token says about itself, so that it can be renewed in time. Pure."""

import base64
import binascii

import msgspec

RENEWED_AT = 0.75
"""Of what is left of its life when it is first looked at."""


class Facts(msgspec.Struct):
    """`expires`: Unix seconds."""

    expires: int

    def renewal_in(self, now: float) -> float:
        """Seconds until it should be renewed; never at once, whatever comes of that."""
        return max(1.0, (self.expires - now) * RENEWED_AT)


def facts_of(credential: str | None) -> Facts | None:
    """None for an API key, which does not end."""
    version, _, rest = (credential or "").partition(".")
    body = rest.partition(".")[0]
    if version != "v1":
        return None
    try:
        return msgspec.json.decode(
            base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=Facts
        )
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
