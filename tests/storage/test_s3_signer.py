"""Our signatures beside botocore's, which is what S3 servers are tested with."""

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.storage.s3_signer import LONGEST_S, Signer, Target, encode_path

NOW = datetime(2026, 11, 23, 18, 5, 9, tzinfo=UTC)
SIGNER = Signer("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-central-1")
CREDENTIALS = Credentials(SIGNER.access_key, SIGNER.secret_key)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30)
segments = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4)
queries = st.dictionaries(
    st.sampled_from(["uploadId", "partNumber", "prefix", "uploads", "response-content-type"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
endpoints = st.sampled_from(
    ["http://127.0.0.1:8333", "https://s3.example.org", "https://s3.example.org:443", "http://a:80"]
)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)


def target(endpoint: str, path: list[str], query: dict[str, str]) -> Target:
    return Target(endpoint, encode_path("bucket", "/".join(path)), query)


@given(endpoints, segments, queries, st.sampled_from(["GET", "PUT", "POST", "DELETE"]))
def test_headers(endpoint: str, path: list[str], query: dict[str, str], method: str) -> None:
    to, extra = target(endpoint, path, query), {"X-Amz-Meta-A": " two  words ", "range": "bytes=0-"}
    ours = SIGNER.headers(method, to, now=NOW, payload=EMPTY, extra=extra)
    theirs = AWSRequest(method=method, url=to.url, headers=extra, data=b"")
    theirs.context["payload_signing_enabled"] = True
    theirs.headers["X-Amz-Content-SHA256"] = EMPTY
    botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", SIGNER.region).add_auth(theirs)
    assert ours["authorization"].replace(" ", "") == theirs.headers["Authorization"].replace(
        " ", ""
    )


@given(endpoints, segments, queries, st.sampled_from(["GET", "PUT"]), st.integers(1, LONGEST_S))
def test_presigned(
    endpoint: str, path: list[str], query: dict[str, str], method: str, expires_s: int
) -> None:
    to = target(endpoint, path, query)
    ours = SIGNER.presigned(method, to, now=NOW, expires_s=expires_s)
    theirs = AWSRequest(method=method, url=to.url)
    auth = botocore.auth.S3SigV4QueryAuth(CREDENTIALS, "s3", SIGNER.region, expires=expires_s)
    auth.add_auth(theirs)
    assert fields(ours) == fields(theirs.url)
    assert urlsplit(ours)[:3] == urlsplit(theirs.url)[:3]


def fields(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query, keep_blank_values=True)


@pytest.mark.parametrize(("asked", "given_"), [(0.2, 1), (90.9, 90), (1e9, LONGEST_S)])
def test_no_address_lives_longer_than_s3_allows(asked: float, given_: int) -> None:
    url = SIGNER.presigned("GET", target("http://a", ["k"], {}), now=NOW, expires_s=asked)
    assert fields(url)["X-Amz-Expires"] == [str(given_)]


def test_the_secret_is_in_no_address() -> None:
    url = SIGNER.presigned("GET", target("http://a", ["k"], {}), now=NOW, expires_s=60)
    assert SIGNER.secret_key not in url
