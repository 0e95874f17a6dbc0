"""Names and types of what was uploaded, in headers: nothing breaks out, nothing runs."""

from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.gateway.media_headers import clean_name, content_type, safe_headers
from mentatlab.storage.sniff import sniff

MARKUP = [b"<html>", b"<svg>", b"<?xml version='1.0'?><x>", b"<script>", b"%PDF-1.7\n\xff", b"text"]


@given(st.text(), st.text(), st.sampled_from(["", "inline", "attachment"]))
def test_whatever_the_name_it_is_one_header_of_one_line(mime: str, name: str, wish: str) -> None:
    headers = safe_headers(mime, name, wish)
    for value in (*headers.values(), content_type(mime)):
        assert value.isascii()
        assert value.isprintable()
    told = Message()
    told["Content-Disposition"] = headers["Content-Disposition"]
    assert told.get_content_disposition() in ("inline", "attachment")
    parameters = {key for key, _ in told.get_params(header="Content-Disposition") or []}
    assert parameters <= {"inline", "attachment", "filename"}
    assert ("filename" in parameters) == bool(clean_name(name))


@given(st.text(min_size=1))
def test_a_name_is_never_a_path(name: str) -> None:
    clean = clean_name(name)
    assert not {"/", "\\", "\0", "\r", "\n"} & set(clean)
    assert len(clean) <= 200


@pytest.mark.parametrize("head", MARKUP)
@pytest.mark.parametrize("wish", ["", "inline"])
def test_what_a_browser_could_run_is_saved_whoever_wishes_otherwise(head: bytes, wish: str) -> None:
    headers = safe_headers(sniff(head), "page.html", wish)
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox"
