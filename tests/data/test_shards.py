"""Memory-mapped shards give the same tokens and batches as the same text in memory."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import tiktoken_ext.openai_public
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.format import open_memmap

from minigpt.config.compose import composed_config
from minigpt.data import CORPORA
from minigpt.data.lazy import DocumentIds, ShardedTokens
from minigpt.data.order import ORDERS
from minigpt.data.prepare import Prepared, prepare
from minigpt.data.shards import Index, chunks, write_shards
from minigpt.data.tokens import Split, split_documents
from minigpt.errors import UserError
from minigpt.runtime import peak_memory_bytes, reset_peak_memory
from minigpt.tokenizer import TOKENIZERS, Tokenizer
from minigpt.tokenizer.bpe import BPETokenizer
from minigpt.tokenizer.tiktoken_ import TiktokenTokenizer
from tests.conftest import TINY, Cli
from tests.train.test_resume import same_end, stop_at

TEXT = "".join(
    f"ROLE {i}:\r\nTo  be — {i * i} — orn\u2019t 東京。 It's{'!' * (i % 3)}\n {' ' * (i % 4)}\n"
    f"\x1c\u00a0 x\t\u3000y{chr(0x1F600 + i)}.\n\n"
    for i in range(40)
)
RUN = [option for option in TINY if not option.startswith("data")]
BPE = ["tokenizer=bpe", "tokenizer.vocab_size=300"]
CHOSEN = {"char": ["tokenizer=char"], "gpt2": ["tokenizer=gpt2"], "bpe": BPE}


def written(*options: str, shard_tokens: int = 50, chunk: int = 11) -> tuple[Prepared, Prepared]:
    """Write TEXT to shards. Return it as prepared from memory, and as prepared from the shards."""
    Path("long.txt").write_bytes(TEXT.encode())
    config = composed_config(["data=text", "data.path=long.txt", *options])
    index = write_shards(
        CORPORA.build(config.data),
        config.tokenizer,
        Path("shards"),
        shard_tokens=shard_tokens,
        chunk_characters=chunk,
    )
    assert sum(len(split["shards"]) for split in index.splits.values()) > 2 or shard_tokens > 1000
    return prepare(config.data, config.tokenizer), of_shards(*options)


def of_shards(*options: str) -> Prepared:
    """Return what a run with data=shards gets."""
    config = composed_config(["data=shards", "data.path=shards", *options])
    return prepare(config.data, config.tokenizer)


def require_equal(split: Split, other: Split) -> None:
    """Compare everything that training and evaluation read from a split."""
    assert split.tokens.tolist() == other.tokens.tolist()
    assert split.target_bytes == other.target_bytes
    assert torch.equal(split.document_lengths, other.document_lengths)
    for block_size, batch_size in ((1, 300), (7, 4), (64, 3)):
        drawn = [
            [
                order(s, batch_size, block_size, torch.Generator().manual_seed(1), 1).batch(1)
                for order in ORDERS.values()
            ]
            for s in (split, other)
        ]
        for one, two in zip(
            [*drawn[0], *split.windows(block_size, batch_size)],
            [*drawn[1], *other.windows(block_size, batch_size)],
            strict=True,
        ):
            for name in ("inputs", "targets", "document_ids"):
                numbers = getattr(one, name), getattr(two, name)
                assert numbers == (None, None) or torch.equal(*numbers), name


@pytest.mark.parametrize("separator", [None, r"\n\n", " ", "—", "n\u2019"])
@pytest.mark.parametrize("name", [*CHOSEN])
def test_shards_equal_a_text_in_memory(
    workdir: Path, name: str, separator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.data.text.BLOCK_BYTES", 37)  # cuts characters and separators
    options = [*CHOSEN[name], *([f"data.document_separator='{separator}'"] if separator else [])]
    in_memory, mapped = written(*options)
    assert in_memory.tokenizer.fingerprint == mapped.tokenizer.fingerprint
    for fact in ("sha256", "n_bytes", "characters"):
        assert getattr(in_memory.corpus, fact) == getattr(mapped.corpus, fact)
    for split, other in (
        (in_memory.tokens.train, mapped.tokens.train),
        (in_memory.tokens.val, mapped.tokens.val),
    ):
        assert isinstance(other.tokens, ShardedTokens)
        assert isinstance(other.document_ids, DocumentIds if separator else type(None))
        require_equal(split, other)
        for n in (1, 49, 50, 51, 160, 10**6):
            require_same_head(split.head(n), other.head(n))
    bits = {"char": np.uint8, "gpt2": np.uint16, "bpe": np.uint16}[name]
    assert np.load("shards/train_00000.npy").dtype == bits


def require_same_head(split: Split, other: Split) -> None:
    assert split.tokens.tolist() == other.tokens.tolist()
    assert split.target_bytes == other.target_bytes
    assert torch.equal(split.document_lengths, other.document_lengths)
    if split.document_ids is not None:
        assert split.document_ids.tolist() == other.document_ids.tolist()


def test_windows_larger_than_a_shard(workdir: Path) -> None:
    in_memory, mapped = written("tokenizer=gpt2", shard_tokens=2, chunk=1)
    assert max(map(len, mapped.tokens.train.tokens.shards)) < 20
    require_equal(in_memory.tokens.train, mapped.tokens.train)


@cache
def make_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of TEXT, or GPT-2's pairs with the words of a later encoding."""
    if name == "bpe":
        return BPETokenizer.train(TEXT, 300)
    if name in CHOSEN:
        config = composed_config(CHOSEN[name]).tokenizer
        create = TOKENIZERS.variant(config.name).create
        return create(config, TEXT + LETTERS, len(TEXT), Path("unused"))
    saved = make_tokenizer("gpt2").to_json()
    load = tiktoken_ext.openai_public.load_tiktoken_bpe
    try:
        tiktoken_ext.openai_public.load_tiktoken_bpe = lambda *_, **__: {}
        saved["pattern"] = getattr(tiktoken_ext.openai_public, name)()["pat_str"]
    finally:
        tiktoken_ext.openai_public.load_tiktoken_bpe = load
    return TiktokenTokenizer.from_json(saved)


LETTERS = "abZé1½。.,'-/ \u00a0\u3000\u2028\x1c\x85\t\r\n\u0301\u200d😀東"


@pytest.mark.parametrize("name", [*CHOSEN, "cl100k_base", "o200k_base"])
@given(
    text=st.text(st.sampled_from(LETTERS) | st.sampled_from("a .\n'"), min_size=1, max_size=60),
    separator=st.none() | st.text("a .\n'", min_size=1, max_size=3),
    block=st.integers(1, 20),
    size=st.integers(1, 9),
)
def test_chunks_have_the_tokens_of_the_whole_text(
    name: str, text: str, separator: str | None, block: int, size: int
) -> None:
    tokenizer = make_tokenizer(name)
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    documents, open_ = [], None
    for chunk, is_end in chunks(blocks, separator, tokenizer.boundary, size):
        assert chunk
        open_ = (open_ or []) + tokenizer.encode(chunk)
        if is_end:
            documents.append(open_)
            open_ = None
    documents += [open_] if open_ else []
    assert documents == [
        tokenizer.encode(document) for document in split_documents(text, separator)
    ]


def test_chunks_are_short() -> None:
    words = chunks(["word " * 20] * 50, None, make_tokenizer("gpt2").boundary, 30)
    assert max(len(chunk) for chunk, _ in words) < 36
    characters = chunks(["x" * 9] * 10, "y", make_tokenizer("char").boundary, 10)
    assert {len(chunk) for chunk, _ in characters} == {10}


def test_a_run_trains_from_shards_like_from_its_text(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ["data=text", "data.path=text.txt", *BPE, r"data.document_separator='.\n'"]
    shards = ["data=shards", "data.path=shards", *text[2:]]
    done = cli("data", "--shards", "shards", *text)
    assert done.code == 0, done.err
    use = done.out.rstrip().rpartition("train with them: ")[2]
    assert shlex.split(use) == ["minigpt", "train", *shards]
    runs = [Path("text_run"), Path("shards_run"), Path("stopped_run")]
    for run, data in zip(runs, (text, shards), strict=False):
        done = cli("train", *RUN, *data, f"hydra.run.dir={run}")
        assert done.code == 0, done.err
    same_end(runs[0], runs[1])
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs[:2]]
    for key in ("data_sha256", "characters", "tokens", "documents", "tokenizer_sha256"):
        assert manifests[0][key] == manifests[1][key], key

    with monkeypatch.context() as patch:
        stop_at(7, patch)
        assert cli("train", *RUN, *shards, f"hydra.run.dir={runs[2]}").code == 128 + signal.SIGTERM
    done = cli("train", f"resume={runs[2]}")
    assert done.code == 0, done.err
    same_end(runs[1], runs[2])

    for run in runs[:2]:
        done = cli("eval", str(run), "--device", "cpu", "--lengths", "4")
        assert done.code == 0, done.err
    found = [json.loads((run / "eval.json").read_text())["best"] for run in runs[:2]]
    for key in ("train_loss", "train_tokens", "val_loss", "val_bits_per_byte", "lengths"):
        assert found[0][key] == found[1][key]
    for command in (["sample", "--max-new-tokens", "3"], ["inspect"], ["report"]):
        done = cli(command[0], str(runs[1]), *command[1:])
        assert done.code == 0, done.err


def test_options_other_than_those_of_the_shards_are_refused(workdir: Path) -> None:
    written(*BPE, r"data.document_separator=\n")
    right = [*BPE, r"data.document_separator=\n"]
    of_shards(*right)
    of_shards(*BPE, "data.document_separator='\n'")  # the same, written otherwise
    for options, message in (
        (["tokenizer=char", right[2]], r"^tokenizer=char: .* made with tokenizer='bpe'; use that"),
        (
            ["tokenizer=bpe", "tokenizer.vocab_size=301", right[2]],
            r"^tokenizer.vocab_size=301: .*=300",
        ),
        (BPE, r"^data.document_separator=None: .*document_separator='\\n'"),
        ([*right, "data.train_fraction=0.8"], r"^data.train_fraction=0.8: .*fraction=0.9"),
        ([*right, "data.dir=elsewhere"], r"^data.dir=elsewhere: .*leave it out"),
        (
            [*right, "data.path=nowhere"],
            r"^data.path=nowhere: index.json cannot .*minigpt data --shards",
        ),
        ([*right, "data.path="], r"^data.path=: missing; give a folder"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            of_shards(*options)
        assert "\n" not in str(refused.value)


def test_damaged_shards_are_refused(workdir: Path) -> None:
    written("tokenizer=char", "data.document_separator=' '")
    options = ["tokenizer=char", "data.document_separator=' '"]

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            of_shards(*options)
        assert "\n" not in str(error.value) and "minigpt data --shards" in str(error.value)

    for name in ("train_00001.npy", "val_00000.npy", "val_ends.npy"):
        file = Path("shards", name)
        whole, array = file.read_bytes(), np.load(file)
        file.unlink()
        refused(rf"^data.path=shards: {name} is missing")
        for content in (b"", whole[:40], whole[:-2]):
            file.write_bytes(content)
            refused(rf"^data.path=shards: {name} is damaged")
        for other in (array[:-1], array.astype(np.int32), array[None]):
            np.save(file, other)
            refused(rf"^data.path=shards: {name} is \(.* but the index says \({len(array)},\)")
        file.write_bytes(whole)
        of_shards(*options)

    saved = Path("shards/tokenizer.json").read_bytes()
    make_tokenizer("bpe").save(Path("shards/tokenizer.json"))
    refused("tokens are of another tokenizer")
    Path("shards/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: file not found"):
        of_shards(*options)
    Path("shards/tokenizer.json").write_bytes(saved)

    index = Path("shards/index.json")
    whole = index.read_text(encoding="utf-8")
    for content in ("", "[]", "{}", whole.replace('"n_bytes": ', '"n_bytes": 1'), whole[:90]):
        index.write_text(content, encoding="utf-8")
        refused(r"^data.path=shards: index.json was not written by minigpt")
    index.write_text(whole, encoding="utf-8")
    of_shards(*options)
    assert Index.read(Path("shards")).splits["train"]["ends"] > 1


def test_a_run_refuses_other_shards(cli: Cli) -> None:
    def make(text: str, *options: str) -> None:
        Path("text.txt").write_text(text, encoding="utf-8")
        done = cli("data", "--shards", "shards", "data=text", "data.path=text.txt", *options)
        assert done.code == 0, done.err

    text = Path("text.txt").read_text(encoding="utf-8")
    make(text, *BPE)
    started = cli("train", *RUN, "data=shards", "data.path=shards", *BPE, "hydra.run.dir=run")
    assert started.code == 0, started.err
    for changed, options, message in (
        (text + "more", BPE, "the text has changed since this run was trained"),
        (text, ["tokenizer=bpe", "tokenizer.vocab_size=280"], "tokens are of another tokenizer"),
        (text, [*BPE, "data.train_fraction=0.8"], "data.train_fraction=0.9: the shards in"),
    ):
        shutil.rmtree("shards")
        make(changed, *options)
        for command in (["eval", "run"], ["train", "resume=run", "trainer.max_steps=20"]):
            failed = cli(*command)
            assert failed.code == 2 and message in failed.err, failed.err


def test_a_failed_command_writes_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {*Path().iterdir()}
    Path("bad.txt").write_bytes(TEXT.encode() + b"\xff!")
    n = len(TEXT.encode())
    for options, message in (
        (["data.path=bad.txt"], f"byte 0xff at offset {n} is not UTF-8 (invalid start byte)"),
        (["data.document_separator=@"], "'@': does not occur in the train split"),
        (["data.train_fraction=0.00001"], "too few to split"),
        (["data.path=nowhere"], "no such file, folder or matching files"),
        (["data=shards", "data.path=x"], "data=shards: cannot be read as text"),
    ):
        data = [] if "data=shards" in options else ["data=text", "data.path=text.txt"]
        monkeypatch.setattr("minigpt.data.text.BLOCK_BYTES", 100)
        failed = cli("data", "--shards", "out", *data, *options)
        assert failed.code == 2 and message in failed.err, failed.err
    there = cli("data", "--shards", "text.txt", "data=text", "data.path=text.txt")
    assert there.code == 2 and "--shards=text.txt: already exists" in there.err
    assert {*Path().iterdir()} - before == {Path("bad.txt")}


def test_a_text_that_changes_while_it_is_read_is_refused(workdir: Path) -> None:
    config = composed_config(["data=text", "data.path=text.txt"])

    def change(phase: str, n: int, total: int | None) -> None:
        Path("text.txt").write_text(text[::-1], encoding="utf-8")

    text = Path("text.txt").read_text(encoding="utf-8")

    with pytest.raises(UserError, match="the text changed while it was read"):
        write_shards(CORPORA.build(config.data), config.tokenizer, Path("shards"), change)
    assert not [*Path().glob("*shards*")]


def test_a_tokenizer_learns_from_a_leading_part(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same part as in memory. Its alphabet still has every character."""
    for module in ("data.shards", "tokenizer.bpe"):
        monkeypatch.setattr(f"minigpt.{module}.MAX_LEARNED_CHARACTERS", 100)
    for options in CHOSEN.values():
        in_memory, mapped = written(*options)
        assert in_memory.tokenizer.fingerprint == mapped.tokenizer.fingerprint
        require_equal(in_memory.tokens.train, mapped.tokens.train)
        read = mapped.tokens.train.tokens.tolist() + mapped.tokens.val.tokens.tolist()
        assert mapped.tokenizer.decode(read) == TEXT
        shutil.rmtree("shards")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is Linux's")
def test_pages_are_released_after_reading(workdir: Path) -> None:
    size = 2**27
    open_memmap("holes.npy", mode="w+", dtype=np.uint8, shape=(size,)).flush()
    tokens = ShardedTokens([np.load("holes.npy", mmap_mode="r")])
    baseline = peak_memory_after(lambda: None)
    for split in (Split("train", tokens, 1), Split("train", tokens, 1).head(size - 1)):
        assert peak_memory_after(partial(draw_often, split)) < baseline + 2**25


def draw_often(split: Split) -> None:
    """Read most pages of the file, some at a time."""
    for seed in range(50):
        split.draw(64, 64, torch.Generator().manual_seed(seed))


def peak_memory_after(work: Callable[[], object]) -> int:
    """Return the peak memory of this process while `work` runs, in bytes."""
    reset_peak_memory("cpu")
    work()
    peak = peak_memory_bytes("cpu")
    assert peak is not None
    return peak


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu(workdir: Path) -> None:
    _, mapped = written("tokenizer=gpt2", "data.document_separator=' '")
    split = mapped.tokens.train
    on_gpu = split.to("cuda")
    for one, two in zip(split.windows(16, 8), on_gpu.windows(16, 8), strict=True):
        assert one.document_ids is not None and two.document_ids is not None
        assert two.inputs.is_cuda and two.targets.is_cuda and two.document_ids.is_cuda
        assert torch.equal(one.inputs, two.inputs.cpu())
        assert torch.equal(one.targets, two.targets.cpu())
        assert torch.equal(one.document_ids, two.document_ids.cpu())
