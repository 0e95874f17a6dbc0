"""What an S3 server says, in the words of the house."""

import re
from xml.etree import ElementTree

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    MentatError,
    NotFound,
    OutOfSpace,
    RangeUnsatisfiable,
    TooLarge,
    Unavailable,
)

_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"}
_BUSY = {
    "InternalError",
    "ServiceUnavailable",
    "SlowDown",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch"}
_HINTS = {
    "InvalidAccessKeyId": "correct S3_ACCESS_KEY: the server does not know that key",
    "SignatureDoesNotMatch": "correct S3_SECRET_KEY; on AWS check S3_REGION too",
    "AuthorizationHeaderMalformed": "correct S3_REGION",
    "PermanentRedirect": "correct S3_ENDPOINT or S3_REGION: the bucket lies elsewhere",
    "RequestTimeTooSkewed": "set this machine's clock: it is off by more than 15 minutes",
    "AccessDenied": "let the key list the bucket, and get, put and delete its objects",
    "InvalidBucketName": "correct S3_BUCKET: 3 to 63 small letters, digits and hyphens",
    "NoSuchBucket": "correct S3_BUCKET, or create the bucket",
}
_REPORT = re.compile(r"status code: (\d{3})[^:]*: (.*)", re.DOTALL)


def parse(body: bytes | str) -> tuple[str, str]:
    """Code and message of an error's XML; empty strings when it is something else."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return "", ""
    return (root.findtext("{*}Code") or ""), (root.findtext("{*}Message") or "")


def is_passing(status: int, code: str) -> bool:
    """Worth another try: the server is busy or ill, or the bytes were damaged on their way."""
    return status >= 500 or status == 429 or code in _BUSY | _DAMAGED


def refused(status: int, code: str, message: str) -> MentatError:
    """The error for an answer that is not a success."""
    said = f"{status} {code}: {message}" if code else str(status)
    if status == 412:
        return Conflict(Code.KEY_EXISTS, "the bucket has an object under this key already")
    if status == 507 or code in _FULL:
        return OutOfSpace(
            Code.DISK_FULL,
            f"the S3 server is full ({said})",
            hint="free some space there; nothing was half written",
        )
    if status == 416:
        return RangeUnsatisfiable(0)
    if code == "EntityTooLarge":
        return TooLarge(Code.PAYLOAD_TOO_LARGE, f"the S3 server refuses so many bytes ({said})")
    if code == "NoSuchUpload":
        return upload_not_found()
    if status == 404 and code != "NoSuchBucket":
        return NotFound(Code.REFERENCE_NOT_FOUND, "the bucket has no such object")
    return Unavailable(
        Code.STORE_UNAVAILABLE,
        f"the S3 server refuses ({said})",
        hint=_HINTS.get(code or {403: "AccessDenied"}.get(status, ""), "see the server's log"),
    )


def reported(text: str, endpoint: str) -> MentatError:
    """The error for what obstore tells of a request, as text only."""
    if (found := _REPORT.search(text)) is None:
        return unreachable(endpoint, text.partition("\n")[0])
    body = found[2].partition("\n\nDebug source")[0]
    return refused(int(found[1]), *parse(body))


def unreachable(endpoint: str, reason: str) -> Unavailable:
    return Unavailable(
        Code.STORE_UNAVAILABLE,
        f"the S3 server at {endpoint} does not answer ({reason})",
        hint="start it, or correct S3_ENDPOINT; `make s3` starts one for development",
    )


def upload_not_found() -> NotFound:
    return NotFound(
        Code.UPLOAD_NOT_FOUND,
        "there is no such upload; it was given up, or it expired",
        hint="begin a new upload",
    )
