"""Scratch folders: one owner, one attempt at a time, and empty when they are given again."""

from pathlib import Path

import pytest

from mentatlab.runs.folders import OUT, Folders, make

OWNER = ("default", "agent")


def made(folders: Folders, root: Path) -> Path:
    folder = folders.reserve(root, OWNER)
    make(folder)
    return folder


def test_an_empty_one_is_given_again_to_the_same_owner_only(tmp_path: Path) -> None:
    folders = Folders()
    first = made(folders, tmp_path)
    assert made(folders, tmp_path) != first
    assert folders.keep(first, OWNER)
    assert folders.reserve(tmp_path, ("other", "agent")) != first
    assert folders.reserve(tmp_path, OWNER) == first
    assert folders.reserve(tmp_path, OWNER) != first


@pytest.mark.parametrize("left", ["out/a.png", "core"])
def test_one_in_which_something_was_left_is_not(tmp_path: Path, left: str) -> None:
    folders = Folders()
    folder = made(folders, tmp_path)
    (folder / left).write_text("x")
    assert not folders.keep(folder, OWNER)


def test_nor_one_whose_out_is_gone(tmp_path: Path) -> None:
    folders = Folders()
    folder = made(folders, tmp_path)
    (folder / OUT).rmdir()
    assert not folders.keep(folder, OWNER)
    folder.rmdir()
    assert not folders.keep(folder, OWNER)


def test_no_more_are_kept_than_make_sense(tmp_path: Path) -> None:
    folders = Folders()
    all_ = [made(folders, tmp_path) for _ in range(65)]
    assert [folders.keep(folder, OWNER) for folder in all_] == [True] * 64 + [False]
