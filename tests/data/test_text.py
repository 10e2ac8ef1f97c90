"""The user's own text files: each text once, and a line about every file that is left out."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.config.compose import composed_config
from minigpt.data.corpus import CORPORA, Corpus
from minigpt.data.prepare import prepare
from minigpt.errors import UserError
from tests.conftest import TINY, Cli


def corpus(path: str, *overrides: str) -> Corpus:
    """Return the corpus of data=text."""
    config = composed_config([*overrides, "data=text", f"data.path='{path}'"])
    return CORPORA.build(config.data).corpus()


def text_of(path: str, *overrides: str) -> str:
    """Return the text of data=text."""
    read = corpus(path, *overrides)
    return "".join(vars(read)["splits"].values())


@pytest.fixture
def books(workdir: Path) -> Path:
    """A folder with two texts, and with everything else that such folders have."""
    folder = workdir / "books"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "a.txt").write_text("one text\n" * 9)
    (folder / "b.txt").write_text("another\n" * 9)
    (folder / "copy.txt").write_text("one text\n" * 9)
    (folder / "link.txt").symlink_to("a.txt")
    os.link(folder / "a.txt", folder / "hard.txt")
    (folder / "empty.txt").touch()
    (folder / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    (folder / "latin.txt").write_bytes("é\n".encode("latin-1") * 9)
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    (folder / "zeros.bin").write_bytes(bytes(9))
    (folder / "__pycache__" / "module.pyc").write_bytes(b"\xa7\r\r\n" + bytes(12))
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / ".hidden").write_text("no")
    (folder / "back").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    return folder


def test_each_text_of_a_folder_once(books: Path) -> None:
    assert text_of("books") == "one text\n" * 9 + "another\n" * 9
    assert corpus("books").left_out == (
        "left out: 2 hidden (books/.git, books/.hidden); "
        "4 not UTF-8 text (books/__pycache__/module.pyc, books/image.png, books/latin.txt, ...); "
        "2 not a file (books/back, books/pipe); "
        "3 same as another (books/copy.txt, books/hard.txt, books/link.txt); "
        "2 empty (books/empty.txt, books/mark.txt)"
    )


def test_each_text_of_a_pattern_once(books: Path) -> None:
    assert text_of("books/**/*.txt") == "one text\n" * 9 + "another\n" * 9
    left_out = corpus("books/*").left_out
    assert left_out is not None and "3 not a file (books/__pycache__, books/back" in left_out
    assert corpus("books/[ab].txt").left_out is None


def test_a_named_file_is_refused(books: Path) -> None:
    for name, message in (
        ("empty.txt", r"^data.path: books/empty.txt: the file is empty"),
        ("mark.txt", r"^data.path: books/mark.txt: the file is empty"),
        ("latin.txt", r"^data.path: books/latin.txt: byte 0xe9 at offset 0 is not UTF-8"),
        ("zeros.bin", r"^data.path: books/zeros.bin: byte 0x00 at offset 0: a binary file"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            corpus(f"books/{name}")
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"^data.path=books/\S+ has no text \(left out: 2 not UTF"):
        corpus("books/[lz]*[ns].*")
    assert text_of("books/link.txt") == "one text\n" * 9


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_refused(books: Path) -> None:
    (books / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match=r"^data.path: books/closed: cannot be read \(Permission"):
        corpus("books")
    (books / "closed").rmdir()


@pytest.mark.medium
def test_commands_say_what_was_left_out(cli: Cli, books: Path) -> None:
    line = corpus("books").left_out
    assert line is not None
    of_folder = ["data=text", "data.path=books", "tokenizer=char"]
    done = cli("train", *TINY, *of_folder, "hydra.run.dir=run")
    assert done.code == 0 and f"files      {line}" in done.out, done.err
    assert json.loads(Path("run/manifest.json").read_text())["left_out"] == line
    for command in (["data"], ["data", "--shards", "shards"]):
        done = cli(*command, *of_folder)
        assert done.code == 0 and f"\n{line}\n" in done.out, done.err
    assert "left out" not in cli("data", "data=text", "data.path=text.txt").out


def test_each_file_begins_a_line(workdir: Path) -> None:
    folder = workdir / "docs"
    folder.mkdir()
    for name, content in (("a", b"here ends one"), ("b", b"document\r\n"), ("c", b"and\r\nlast")):
        (folder / name).write_bytes(content)
    assert text_of("docs") == "here ends one\ndocument\r\nand\r\nlast"
    assert text_of("docs/c") == "and\r\nlast"


PAGES = [
    "one page",
    "the second\npage\n",
    "3",
    "words and words. " * 9,
    "end",
    "of all the pages here\r\n",
]


@pytest.mark.medium
@pytest.mark.parametrize("tokenizer", ["char", "gpt2", "bpe"])
def test_each_file_is_a_document(cli: Cli, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.data.text.BLOCK_BYTES", 7)
    Path("pages").mkdir()
    for number, page in enumerate(PAGES):
        Path("pages", str(number)).write_bytes(page.encode())
    options = [f"tokenizer={tokenizer}", "data.document_separator=file"]
    source = ["data=text", "data.path=pages"]
    config = composed_config([*source, *options])
    prepared = prepare(config.data, config.tokenizer)
    tokens = prepared.tokens
    whole = "".join(f"{page}\x1c" for page in PAGES)
    read = tokens.train.tokens.tolist() + tokens.val.tokens.tolist()
    assert prepared.tokenizer.decode(read) == whole
    lengths = [len(prepared.tokenizer.encode(f"{page}\x1c")) for page in PAGES]
    assert tokens.train.document_lengths.tolist()[:5] == lengths[:5]
    done = cli("data", "--shards", "shards", *source, *options)
    assert done.code == 0, done.err
    config = composed_config(["data=shards", "data.path=shards", *options])
    of_shards = prepare(config.data, config.tokenizer).tokens
    for split, other in ((tokens.train, of_shards.train), (tokens.val, of_shards.val)):
        assert split.tokens.tolist() == other.tokens.tolist()
        assert split.document_ids.tolist() == other.document_ids.tolist()
    done = cli("train", *TINY, *source, *options, "model.block_size=2", "hydra.run.dir=run")
    assert done.code == 0, done.err
    done = cli("sample", "run", "--num-samples", "2", "--prompt", "e")
    assert done.code == 0 and "\x1c" not in done.out, done.err


def test_files_that_cannot_be_documents(workdir: Path) -> None:
    Path("pages").mkdir()
    for name, content in (("a", "one " * 9), ("b", "a\x1cb" * 9)):
        Path("pages", name).write_text(content)
    key = "data.document_separator=file"
    for path, overrides, message in (
        ("pages", [key], rf"^{key}: pages/b: has the character U\+001C"),
        ("pages/a", [key], rf"^{key}: does not occur in the train split; use data=text with more"),
    ):
        with pytest.raises(UserError, match=message):
            corpus(path, *overrides)


@pytest.mark.parametrize(
    ("newline", "separator", "use"),
    [
        ("\r\n", r"\n\n", r"\r\n\r\n"),
        ("\r\n", r".\n\n", r".\r\n\r\n"),
        ("\n", r"\r\n\r\n", r"\n\n"),
        ("\n", "###", None),
        ("\r\n", "###", None),
    ],
)
def test_a_separator_with_other_line_ends(
    cli: Cli, newline: str, separator: str, use: str | None
) -> None:
    lines = ["a page.", "", "another page.", ""] * 20
    Path("lines.txt").write_bytes("".join(line + newline for line in lines).encode())
    data = ["data=text", "data.path=lines.txt", "tokenizer=char"]
    for command in (["data"], ["data", "--shards", "shards"]):
        refused = cli(*command, *data, f"data.document_separator={separator}")
        assert refused.code == 2 and "does not occur in the train split" in refused.err
        assert refused.err.count("\n") == 1
        if use is None:
            assert "use a separator of this text, or null" in refused.err
            continue
        assert f"use data.document_separator='{use}', or null" in refused.err
        done = cli(*command, *data, f"data.document_separator='{use}'")
        assert done.code == 0, done.err


def test_brackets_in_names_and_in_patterns(workdir: Path) -> None:
    folder = workdir / "dir [2024]" / "part [1]"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c [2].txt"):
        (folder / name).write_text(f"{name}\n")
    for pattern, text in (
        ("dir [2024]/part [1]/*.txt", "a.txt\nb.txt\nc [2].txt\n"),
        ("dir [2024]/**/[ab].txt", "a.txt\nb.txt\n"),
        ("dir [2024]/*/c [[]*.txt", "c [2].txt\n"),
        ("dir [[]2024]/*/a.*", "a.txt\n"),
        (f"{workdir}/dir [2024]/p*/c [2].txt", None),
        ("dir [2024]/part [1]/c [2].txt", "c [2].txt\n"),
    ):
        if text is not None:
            assert text_of(pattern) == text
            continue
        with pytest.raises(UserError, match=r"are a pattern, write \[\[\] for a bracket"):
            corpus(pattern)


@pytest.mark.parametrize("path", ["/dev/stdin", "pipe"])
def test_a_pipe_is_refused(workdir: Path, path: str) -> None:
    os.mkfifo("pipe")
    command = [sys.executable, "-m", "minigpt.cli", "data", "data=text", f"data.path={path}"]
    refused = subprocess.run(command, input="a text\n", capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"minigpt: data.path={path}: a pipe or device, but a text is read more than once; "
        "write it to a file first\n"
    )


def test_a_path_with_a_comma(cli: Cli) -> None:
    Path("a,b.txt").write_text("a text\n" * 99)
    options = ["data=text", "tokenizer=char"]
    refused = cli("data", *options, "data.path=a,b.txt")
    assert refused.code == 2 and refused.err.count("\n") == 1
    advice = shlex.split(refused.err.partition("part of a text: ")[2])
    assert advice == ['data.path="a,b.txt"']
    done = cli("data", *options, *advice)
    assert done.code == 0, done.err


def test_a_path_without_a_choice_of_data(cli: Cli) -> None:
    refused = cli("train", "data.path=x")
    assert refused.code == 2
    assert "data.path: an option of data=shards or data=text; choose that too" in refused.err
