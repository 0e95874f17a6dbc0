"""Every error code has its page, and no page is left over."""

from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code

PAGES = Path(__file__).parents[1] / "docs" / "reference" / "errors"
SECTIONS = ["## What it means", "## When it happens", "## What to do"]


def test_no_page_is_without_a_code():
    assert {page.stem for page in PAGES.glob("*.md")} - set(Code) <= {"README", "index"}


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_page(code: Code):
    lines = (PAGES / f"{code}.md").read_text().splitlines()
    assert lines[0] == f"# {code}"
    assert [line for line in lines if line.startswith("#")][1:] == SECTIONS
    for section in SECTIONS:
        following = [line for line in lines[lines.index(section) + 1 :] if line]
        assert following, section
        assert not following[0].startswith("#"), section
