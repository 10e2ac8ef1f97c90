"""`minigpt export --to gguf`: the file, what is refused, and what llama.cpp computes with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minigpt.errors import UserError
from minigpt.export import gguf_file
from minigpt.export.gguf_file import BY_USE_IN_PAIRS, FAMILIES, choose_family, write_gguf
from minigpt.export.gguf_tokens import token_bytes, vocabulary
from minigpt.export.tensors import BY_USE
from minigpt.export.tokenizer_json import to_tokenizer_json
from minigpt.model import ModelConfig
from minigpt.run.load import TrainedRun
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BPETokenizer
from minigpt.tokenizer.char import CharTokenizer
from minigpt.tokenizer.json_ import JsonTokenizer
from tests.conftest import TINY, Cli
from tests.export.designs import DESIGNS, violating
from tests.export.test_export import left
from tests.export.test_tokenizers import TEXT, later_tokenizer, tokenizer_of
from tests.model.tiny import composed_model, random_model, tiny_config

gguf = pytest.importorskip("gguf")

LLAMA = ("model=llama", "model.qk_norm=false", "model.n_kv_head=1", "model.n_head=2")
GPT2 = ("model=gpt2", "ffn=gelu_tanh")
RUNS = {
    "gpt2-char": (*GPT2, "tokenizer=char"),
    "gpt2-gpt2": (*GPT2, "tokenizer=gpt2", "model.vocab_multiple=64", "embedding=untied"),
    "llama-char": (*LLAMA, "tokenizer=char", "model.bias=true"),
    "llama-bpe": (*LLAMA, "tokenizer=bpe", "tokenizer.vocab_size=300"),
    "llama-yarn": (
        *(*LLAMA, "tokenizer=char", "model.positional.scaling=yarn", "model.positional.factor=4"),
    ),
    "llama-linear": (
        *(*LLAMA, "tokenizer=char", "model.positional.scaling=linear"),
        "model.positional.factor=4",
    ),
}
# Characters that llama.cpp's tokenizers treat in their own way, if any.
CHARACTERS = "\x00\t\n\r !\"'\\az~\x7f\xa0é\u2028日\U0001d518"


def train(cli: Cli, kind: str) -> Path:
    """Train a run that llama.cpp can load."""
    size = ("model.block_size=64", "trainer.precision=fp32", "trainer.sample_every=null")
    done = cli("train", *TINY, *RUNS[kind], *size, "optimizer.lr=0.03", "hydra.run.dir=run")
    assert done.code == 0, done.err
    return Path("run")


def corrupted_tensor(add: Callable[..., Any]) -> Callable[..., Any]:
    """Return `add_tensor` that changes one weight."""

    def add_tensor(writer: Any, name: str, tensor: Any) -> None:
        if name == "blk.0.attn_q.weight":
            tensor[1, 2] += 0.5
        add(writer, name, tensor)

    return add_tensor


def design(name: str, number: int) -> ModelConfig:
    """Return a tiny design of GPT-2 or Llama, with the feed-forward layer of llama.cpp."""
    config = DESIGNS[name][number]
    ffn = {"GPT-2": "gelu_tanh", "Llama": "swiglu"}[name]
    return replace(config, ffn=replace(composed_model(f"ffn={ffn}").ffn))


CASES = [
    pytest.param(design(name, number), id=f"{name}-{number}")
    for name in ("GPT-2", "Llama")
    for number in range(len(DESIGNS[name]))
]


@pytest.mark.parametrize("config", CASES)
def test_a_file_has_the_weights_and_sizes(tmp_path: Path, config: ModelConfig) -> None:
    tokenizer = CharTokenizer(CHARACTERS)
    model = random_model(config, tokenizer.n_vocab)
    saved = json.loads(to_tokenizer_json(tokenizer))
    n_tensors = write_gguf(tmp_path / "file", "name", model, tokenizer, saved)
    reader = gguf.GGUFReader(tmp_path / "file")
    tensors = {one.name: np.array(one.data) for one in reader.tensors}
    assert len(tensors) == n_tensors
    embedding = model.state_dict()["token_embedding.weight"][: tokenizer.n_vocab].numpy()
    scale = config.n_embd**0.5 if config.embedding.scale else 1.0
    np.testing.assert_allclose(tensors["token_embd.weight"], embedding * scale, rtol=1e-6)
    assert ("output.weight" in tensors) == (config.embedding.name == "untied")
    name = choose_family(config).name
    sizes = {"context_length": config.block_size, "block_count": config.n_layer}
    sizes |= {"embedding_length": config.n_embd, "attention.head_count": config.n_head}
    for key, value in sizes.items():
        assert reader.get_field(f"{name}.{key}").contents() == value


def test_neighbouring_channels_turn_together() -> None:
    """Rotating neighbours after the layout is rotating halves before it."""
    shape = tiny_config("rope", n_embd=24, n_head=6, n_kv_head=2).shape
    e = shape.head_size
    qkv = torch.randn((shape.n_head + 2 * shape.n_kv_head) * e, 5)
    angles = torch.randn(e // 2)

    def turned(x: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
        heads = x.clone().view(-1, e, 5)
        for (i, j), angle in zip(pairs, angles, strict=True):
            for head in heads:
                a, b = head[i].clone(), head[j].clone()
                head[i], head[j] = (
                    a * angle.cos() - b * angle.sin(),
                    b * angle.cos() + a * angle.sin(),
                )
        return heads.view(-1, 5)

    halves = [(k, k + e // 2) for k in range(e // 2)]
    neighbours = [(2 * k, 2 * k + 1) for k in range(e // 2)]
    q, k, v = BY_USE.apart(qkv, shape)
    turned_first = torch.cat([turned(q, halves), turned(k, halves), v])
    turned_first = BY_USE_IN_PAIRS.apart(turned_first, shape)
    theirs = BY_USE_IN_PAIRS.apart(qkv, shape)
    assert torch.equal(turned_first[0], turned(theirs[0], neighbours))
    assert torch.equal(turned_first[1], turned(theirs[1], neighbours))
    assert torch.equal(turned_first[2], theirs[2])
    assert torch.equal(BY_USE_IN_PAIRS.together(list(theirs), shape), qkv)


@pytest.mark.parametrize("name", ["char", "bpe", "gpt2"])
def test_tokens_come_back(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    found = words_of(tokenizer)
    keys = ("model", "tokens", "token_type")
    read = token_bytes(*(found[f"tokenizer.ggml.{key}"] for key in keys))
    assert read == [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
    read_again = JsonTokenizer(json.loads(to_tokenizer_json(tokenizer)))
    assert words_of(read_again) == found
    if name != "char":
        end = found["tokenizer.ggml.eos_token_id"]
        assert tokenizer.token_bytes(end) == (b"\xff" if name == "bpe" else b"<|endoftext|>")


def words_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the vocabulary in the words of llama.cpp."""
    return vocabulary(json.loads(to_tokenizer_json(tokenizer)), tokenizer.n_vocab)


def test_tokenizers_that_llama_cpp_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"pre_tokenizer: .* GPT-2's words\); train with"):
        words_of(later_tokenizer())
    saved = json.loads(to_tokenizer_json(BPETokenizer.train("ab ab", 257)))
    for key, value in (
        ("normalizer", {"type": "NFC"}),
        ("model", {"type": "Unigram"}),
        ("model", {**saved["model"], "vocab": {"a": 0}}),
    ):
        with pytest.raises(UserError, match=f"tokenizer.json: {key}"):
            vocabulary({**saved, key: value}, 257)
    byte = words_of(BPETokenizer.train("a", 256))
    assert byte["tokenizer.ggml.merges"] == ["ÿ ÿ"]


def test_a_design_that_llama_cpp_lacks_is_refused_by_name() -> None:
    for config, line in (
        (
            DESIGNS["GPT-2"][1],
            "model.ffn.name=relu2: no architecture of llama.cpp .* ffn=gelu_tanh$",
        ),
        (DESIGNS["Llama"][1], "model.ffn.name=geglu: no architecture of llama.cpp .* ffn=swiglu$"),
        (DESIGNS["Mistral"][0], "model.attention.name=sliding_window: .*attention=full$"),
    ):
        with pytest.raises(UserError, match=line):
            choose_family(config)
    for family in FAMILIES:
        config = design(family.architecture.name, 0)
        for requirement in family.architecture.requirements:
            assert requirement in family.architecture.violations(violating(config, requirement))


def test_a_later_key_of_a_config_json_is_refused() -> None:
    family = choose_family(design("Llama", 1))
    values = family.architecture.config_of(design("Llama", 1), 13)
    assert family.metadata_of(values)["llama.rope.freq_base"] == 99.0
    with pytest.raises(UserError, match=r"config\.json: later=2: llama\.cpp has nothing like it"):
        family.metadata_of({**values, "later": 2})


def test_a_run_leaves_as_one_file(cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(cli, "llama-char")
    before = left(Path())
    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", corrupted_tensor(gguf.GGUFWriter.add_tensor))
        failed = cli("export", "run", "--to", "gguf", "new/model.gguf")
        assert failed.code == 1 and "differs in the file; nothing was written" in failed.err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        failed = cli("export", "run", "--to", "gguf", "new/model.gguf")
        assert failed.code == 2 and "gguf, which writes the file, is not installed" in failed.err
    with monkeypatch.context() as patch:
        patch.setattr(gguf_file, "token_bytes", lambda *_: [])
        failed = cli("export", "run", "--to", "gguf", "new/model.gguf")
        assert failed.code == 1 and "other tokens than the run" in failed.err
    assert left(Path()) == before
    done = cli("export", "run", "--to", "gguf", "new/model.gguf")
    assert done.code == 0, done.err
    assert "run (best) as Llama of llama.cpp" in done.out and "tokens equal" in done.out
    assert left(Path("new")) == {"model.gguf"}
    again = cli("export", "run", "--to", "gguf", "new/model.gguf")
    assert again.code == 2 and "PATH=new/model.gguf: exists; give a new file" in again.err


def test_the_default_design_is_refused_before_work(cli: Cli, tiny_run: Path) -> None:
    refused = cli("export", "run", "--to", "gguf", "out.gguf")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith("minigpt: model.") and "llama.cpp" in refused.err
    assert not Path("out.gguf").exists()


@pytest.mark.parametrize("kind", RUNS)
def test_llama_cpp_computes_the_same(cli: Cli, workdir: Path, kind: str) -> None:
    """Equal tokens and equal greedy text; logits differ by rounding.

    llama.cpp has cached keys and values, and its table of GELU, in half precision.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    run = train(cli, kind)
    exported = cli("export", str(run), "--to", "gguf", "model.gguf")
    assert exported.code == 0, exported.err
    trained = TrainedRun.load(str(run), device="cpu")
    options: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "verbose": False}
    theirs = llama_cpp.Llama("model.gguf", logits_all=True, **options)
    text = "Line 12: the quick brown fox jumps"
    ids = theirs.tokenize(text.encode(), add_bos=False)
    assert ids == trained.tokenizer.encode(text)
    theirs.eval(ids)
    with torch.no_grad():
        ours = trained.model(torch.tensor([ids]))[0].numpy()
    difference = float(np.abs(theirs.scores[: len(ids)] - ours).max())
    assert difference < (0.02 if kind.startswith("gpt2") else 1e-3)
    prompt, n = "Line 4", 24
    theirs.reset()
    prompt_ids = theirs.tokenize(prompt.encode(), add_bos=False)
    stream = theirs.generate(prompt_ids, temp=0.0)
    continued = [token for token, _ in zip(stream, range(n), strict=False)]
    sampled = cli("sample", "run", "--greedy", "--prompt", prompt, "--max-new-tokens", str(n))
    assert theirs.detokenize(prompt_ids + continued).decode() == sampled.out.removesuffix("\n")


@pytest.mark.parametrize("name", ["char", "bpe", "gpt2"])
def test_llama_cpp_reads_the_same_tokens(tmp_path: Path, name: str) -> None:
    """Also of awkward texts. Only words longer than those of `tokenizer=bpe` may differ."""
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = tokenizer_of(name, tmp_path)
    config = design("Llama", 0)
    saved = json.loads(to_tokenizer_json(tokenizer))
    model = random_model(config, tokenizer.n_vocab)
    path = tmp_path / "model.gguf"
    write_gguf(path, "name", model, tokenizer, saved)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = tokenizer.encode(TEXT)
    assert theirs.tokenize(TEXT.encode(), add_bos=False) == ours
    pieces = {token: tokenizer.token_bytes(token) for token in ours}
    short = [token for token in ours if len(pieces[token]) <= 32]  # the buffer of llama-cpp-python
    assert theirs.detokenize(short) == b"".join(map(pieces.__getitem__, short))
