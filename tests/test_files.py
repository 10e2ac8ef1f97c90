"""Files and directories are written atomically."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt.files import atomic_directory, atomic_path, recover_directory, sha256, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "old\n")
    with pytest.raises(RuntimeError), atomic_path(file) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert file.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    directory = tmp_path / "last"
    for text in ("first", "second"):
        with atomic_directory(directory) as temporary:
            (temporary / "a").write_text(text)
    with pytest.raises(RuntimeError), atomic_directory(directory) as temporary:
        (temporary / "a").write_text("third")
        raise RuntimeError
    assert (directory / "a").read_text() == "second"
    with atomic_directory(directory) as temporary:  # what the failure left is no obstacle
        (temporary / "b").write_text("fourth")
    assert [path.name for path in directory.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [directory]


def test_recovery_of_either_half_of_a_swap(tmp_path: Path) -> None:
    directory, old = tmp_path / "last", tmp_path / ".last.old"
    old.mkdir()
    (old / "a").write_text("old")
    recover_directory(directory)
    assert (directory / "a").read_text() == "old"
    old.mkdir()
    recover_directory(directory)
    assert (directory / "a").read_text() == "old" and not old.exists()


def test_newlines_are_kept(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "a\r\nb\n")
    assert (tmp_path / "f").read_bytes() == b"a\r\nb\n"
    assert sha256("a") == sha256(b"a")
