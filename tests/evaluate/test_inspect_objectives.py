"""`minigpt inspect` of prefix decoders, encoders and encoder-decoders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.evaluate.inspect import label_of, next_tokens, record, scheme_values
from minigpt.evaluate.inspection import encode_prompt, validation_prompt
from minigpt.model import GPT
from minigpt.model.positional import POSITIONAL
from minigpt.model.positional.alibi import alibi_slopes
from minigpt.model.stack import Stack
from minigpt.run.load import TrainedRun
from tests.conftest import TINY, Cli
from tests.evaluate.test_inspect import KINDS, char_tokenizer
from tests.model.tiny import random_model, tiny_config

TOKENS = [3, 1, 4, 1, 5, 9]
SOURCE = [2, 7, 1, 8, 2, 8, 1, 8]
SCHEMES = [name for name in POSITIONAL.names() if POSITIONAL.variant(name).has_two_sided_form]
READS: dict[str, dict[str, Any]] = {
    "prefix_decoder": {"prefix": 4},
    "encoder": {},
    "encoder_decoder": {"source": SOURCE},
}


def model_of(architecture: str, scheme: str = "alibi", **changes: Any) -> GPT:
    """Return a random model of two layers and three heads."""
    return random_model(tiny_config(scheme, architecture=architecture, **changes))


def logits_of(model: GPT, prefix: int | None = None, source: list[int] | None = None) -> Tensor:
    """Return the logits (t, n_vocab) of TOKENS."""
    memory = None if source is None else model.encode(torch.tensor([source]))
    lengths = None if prefix is None else torch.tensor([prefix])
    return model(torch.tensor([TOKENS]), lengths=lengths, memory=memory)[0].detach()


def outputs_of(model: GPT, modules: list[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """Return the output (t, n) of each module in a forward pass over one row."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        outputs[module] = output[0].detach()

    hooks = [module.register_forward_hook(keep) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return [outputs[module] for module in modules]


def weights_of(q: Tensor, k: Tensor, bias: Tensor, visible: Tensor) -> Tensor:
    """Return softmax(q k / sqrt(e) + bias) over what is visible, with QK-norm: (h, i, j)."""
    q, k = (rearrange(x, "t (h e) -> h t e", e=4) for x in (q, k))
    q, k = F.rms_norm(q, (4,)), F.rms_norm(k, (4,))
    scores = torch.einsum("hie,hje->hij", q, k.repeat_interleave(len(q) // len(k), 0))
    return (scores / math.sqrt(4) + bias).masked_fill(~visible, -torch.inf).softmax(-1)


def alibi(n: int) -> Tensor:
    """Return the bias -slope |i - j| of three heads: (h, i, j)."""
    index = torch.arange(n)
    return -torch.tensor(alibi_slopes(3))[:, None, None] * (index[:, None] - index).abs()


def assert_weights(recorded: list[Tensor], expected: list[Tensor], visible: Tensor) -> None:
    """Assert that rows sum to 1, and that masked entries are 0 in the model, and not drawn."""
    assert len(recorded) == len(expected) == 2
    for weights, formula in zip(recorded, expected, strict=True):
        assert torch.equal(weights.isnan(), ~visible.expand_as(weights))
        torch.testing.assert_close(weights.nan_to_num(), formula)
        torch.testing.assert_close(weights.nansum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("architecture", READS)
def test_recorded_weights_equal_the_formula(architecture: str, kv_heads: int | None) -> None:
    model, read = model_of(architecture, n_kv_head=kv_heads), READS[architecture]
    recording = record(model, TOKENS, **read)
    torch.testing.assert_close(recording.logits, logits_of(model, **read))
    n, s = len(TOKENS), len(SOURCE)
    index = torch.arange(n)
    visible = {
        "prefix_decoder": (index <= index[:, None]) | (index < 4),
        "encoder": torch.ones(n, n, dtype=torch.bool),
        "encoder_decoder": index <= index[:, None],
    }[architecture]
    width = 4 * (kv_heads or 3)

    def projected(stack: Stack, *names: str) -> list[Tensor]:
        modules = [block.get_submodule(name) for block in stack.blocks for name in names]
        return outputs_of(model, modules, lambda: logits_of(model, **read))

    def self_attention(stack: Stack, n: int, visible: Tensor) -> list[Tensor]:
        heads = (x.split((12, width, width), 1) for x in projected(stack, "self_attention.qkv"))
        return [weights_of(q, k, alibi(n), visible) for q, k, _ in heads]

    assert_weights(recording.weights, self_attention(model, n, visible), visible)
    if model.encoder is None:
        assert recording.encoder is None and not recording.cross
        return
    assert recording.encoder is not None
    everything = torch.ones(s, s, dtype=torch.bool)
    expected = self_attention(model.encoder, s, everything)
    assert_weights(recording.encoder.weights, expected, everything)
    everything = torch.ones(n, s, dtype=torch.bool)
    outputs = projected(model, "cross_attention.q", "cross_attention.kv")
    pairs = zip(outputs[::2], outputs[1::2], strict=True)
    no_bias = torch.zeros(())
    expected = [weights_of(q, kv[:, :width], no_bias, everything) for q, kv in pairs]
    assert_weights(recording.cross, expected, everything)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("architecture", READS)
def test_every_scheme_is_recorded(architecture: str, scheme: str) -> None:
    model, read = model_of(architecture, scheme), READS[architecture]
    recording = record(model, TOKENS, **read)
    torch.testing.assert_close(recording.logits, logits_of(model, **read))
    stacks = [(model, recording), (model.encoder, recording.encoder)]
    for stack, of_stack in stacks[: len(model.stacks)]:
        assert stack is not None and of_stack is not None
        values = scheme_values(stack, of_stack)
        assert set(values) == {kind for kind, schemes in KINDS.items() if scheme in schemes}
        n_distances = 31 if stack.positional.two_sided else 16
        for kind in {"bias", "decay"} & set(values):
            assert all(v.shape[-1] == n_distances for v in values[kind])


@pytest.mark.parametrize("scheme", sorted(KINDS["bias"]))
def test_biases_of_both_sides(scheme: str) -> None:
    model = model_of("encoder", scheme)
    values = scheme_values(model, record(model, [1, 2, 3, 4] * 4))
    score = values["score"][0]
    both = torch.cat((score[:, 0, 1:].flip(-1), score[:, -1].flip(-1)), -1)
    torch.testing.assert_close(values["bias"][0], both)


def test_rotation_of_both_sides() -> None:
    model = model_of("encoder", "rope")
    frequencies = 10000.0 ** (-torch.arange(2) / 2)
    expected = (torch.arange(-15, 16)[:, None] * frequencies).cos().mean(-1)
    values = scheme_values(model, record(model, TOKENS))
    torch.testing.assert_close(values["decay"][0][0], expected)


def test_predictions_of_special_tokens() -> None:
    tokenizer = char_tokenizer()
    config = tiny_config("rope", architecture="encoder", n_special_tokens=1)
    recording = record(random_model(config, 13), [13, 5])
    rows = next_tokens(recording, [13, 5], tokenizer, 14, [None, 5], ["[MASK]"])
    assert rows[0][0][0] == "" and rows[1][0][0] == label_of(5, tokenizer)
    p = recording.logits.softmax(-1)
    assert rows[1][0][1] == pytest.approx(p[1, 5].item())
    assert dict(rows[0][1:])["[MASK]"] == pytest.approx(p[0, 13].item())


# --- the command

HEADINGS = {
    "prefix": (
        "Prompt: 7 tokens with a prefix of 7 in both directions",
        "Attention with a prefix of 7 in both directions",
    ),
    "masked": ("Attention of the encoder", "Positions of the encoder: t5", "Predicted tokens"),
    "denoise": (
        "Source: 7 tokens",
        "Attention of the encoder",
        "Attention of the decoder",
        "Cross-attention of the decoder",
        "Positions of the encoder: t5",
        "Attention bias by distance of the encoder",
        "Positions of the decoder: t5",
        "Attention bias by distance of the decoder",
    ),
}
FIGURES = {
    "prefix": {"attention", "score", "bias", "next"},
    "masked": {"attention", "score", "bias", "next"},
    "denoise": {
        *(
            f"{stack}_{kind}"
            for stack in ("encoder", "decoder")
            for kind in ("attention", "score", "bias")
        ),
        *("decoder_cross", "next"),
    },
}


@pytest.mark.parametrize("objective", HEADINGS)
def test_page(cli: Cli, workdir: Path, objective: str) -> None:
    options = (f"objective={objective}", "positional=t5", "hydra.run.dir=run")
    assert cli("train", *TINY, *options).code == 0
    text = "Line 1:" if objective == "prefix" else "Line[MASK]1:"
    outcome = cli("inspect", "run", "--prompt", text)
    assert outcome.code == 0, outcome.err
    page = Path("run/inspect/inspect.html").read_text(encoding="utf-8")
    for heading in HEADINGS[objective]:
        assert f"<h2>{heading}</h2>" in page
    figures = {path.stem.removeprefix("inspect_") for path in Path("run/inspect").glob("*.png")}
    assert figures == FIGURES[objective]
    gap = {"prefix": "␣", "masked": "[MASK]", "denoise": "&lt;0&gt;"}[objective]
    assert f"L i n e {gap} 1 :" in page
    assert ("Negative distances" in page) and ("Only the causal mask" not in page)
    by_default = cli("inspect", "run", "--out", "default")
    assert by_default.code == 0, by_default.err
    if objective == "denoise":
        check_gaps(cli, TrainedRun.load("run"))


def check_gaps(cli: Cli, trained: TrainedRun) -> None:
    """Check what a decoder writes, and errors about gaps."""
    n = trained.tokenizer.n_vocab
    prompt = encode_prompt(trained, "Li[MASK]1")
    filled = json.loads(cli("fill", "run", "--text", "Li[MASK]1", "--json").out)
    assert prompt.source == [*trained.tokenizer.encode("Li"), n, *trained.tokenizer.encode("1")]
    assert prompt.tokens[0] == n and prompt.targets == [*prompt.tokens[1:], n + 1]
    written = trained.tokenizer.decode(prompt.tokens[1:])
    assert filled["gaps"][0][0]["text"].startswith(written) and len(prompt.tokens) <= 8
    whole = encode_prompt(trained, "Line 1:")
    assert whole.source is not None and n in whole.source and not whole.origin
    for text, message in (
        ("[MASK]a[MASK]", "--prompt: gaps=2: the model knows 1 gaps at most"),
        ("Line 1: fo", "10 tokens, at most 8 can be plotted: more than model.block_size"),
    ):
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            encode_prompt(trained, text)


def test_masks_in_documents(cli: Cli, workdir: Path) -> None:
    options = ("objective=masked", "data.document_separator=3", "hydra.run.dir=run")
    assert cli("train", *TINY, *options).code == 0
    trained = TrainedRun.load("run")
    prompt, mask = encode_prompt(trained, "1[MASK]3[MASK]2"), trained.tokenizer.n_vocab
    assert prompt.document_ids == [0, 0, 1, 1, 1]
    assert [token == mask for token in prompt.tokens] == [False, True, False, True, False]
    assert prompt.targets == [None if token == mask else token for token in prompt.tokens]
    read = validation_prompt(trained)
    expected = trained.prepare().tokens.val.head(8).tokens.tolist()
    assert read.targets == expected and read.tokens != expected
