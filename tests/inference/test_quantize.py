"""Quantized weights: their values, their size and their effect on evaluation and decoding."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from minigpt.config.compose import composed_config
from minigpt.data.tokens import Split
from minigpt.errors import UserError
from minigpt.evaluate.loss import evaluate
from minigpt.extras import install
from minigpt.inference.generate import Decoder
from minigpt.inference.quantize import quantize, stored_bytes
from minigpt.model import GPT
from minigpt.model.backends import BACKENDS
from minigpt.model.ffn import FFN
from minigpt.runtime import Runtime
from tests.conftest import TINY, Cli

pytestmark = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs torchao (extra quantize)"
)

FP32, BF16 = Runtime("cpu", "", "fp32", ""), Runtime("cpu", "", "bf16", "")
METHODS = ("int8", "int4")
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
MAX_LOSS_CHANGE = {"int8": 0.005, "int4": 0.1}  # nats; the loss is about three
# For logits up to 2.5. Kernels may sum one row and several rows in different orders.
ATOL = {"int8": 1e-5, "int4": 0.05}


def build_model(*overrides: str, n_vocab: int = 16, **changes: Any) -> GPT:
    """Return a small model whose parameters are random with a large variance."""
    model = GPT(replace(composed_config([*overrides]).model, **{**SMALL, **changes}), n_vocab)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def linears(model: GPT) -> dict[str, nn.Linear]:
    """Return the linear layers by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def random_split(n_tokens: int = 321, n_vocab: int = 16) -> Split:
    """Return a validation split of random tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(n_vocab, (n_tokens,), dtype=torch.int32, generator=generator)
    return Split("val", tokens, target_bytes=n_tokens - 1)


def effective_weight(linear: nn.Linear) -> Tensor:
    """Return the weight (out, in) that a layer multiplies by, for any storage format."""
    with torch.inference_mode():
        products = linear(torch.eye(linear.in_features))
        return (products if linear.bias is None else products - linear.bias).T


# --- values and sizes


def test_int8_rounds_each_row_to_256_steps() -> None:
    model = build_model("model=gpt2")
    before = deepcopy(model)
    assert quantize(model, "int8").left == {"tied to the token embedding": 1}
    for name, linear in linears(model).items():
        if name == "head":
            continue
        rows = []
        for row in linears(before)[name].weight:
            scale = row.abs().max() / 127.5
            rows.append((row * (1 / scale)).round().clamp(-128, 127) * scale)
        torch.testing.assert_close(
            effective_weight(linear), torch.stack(rows), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(("n_embd", "size"), [(32, 32), (64, 64), (96, 32), (256, 128)])
def test_int4_rounds_each_group_to_16_steps(n_embd: int, size: int) -> None:
    """`size` is the largest valid group size, which may be smaller than the width."""
    model = build_model("model=gpt2", n_embd=n_embd, n_layer=1)
    weight = linears(model)["blocks.0.self_attention.qkv"].weight.detach().clone()
    quantize(model, "int4")
    quantized = effective_weight(linears(model)["blocks.0.self_attention.qkv"])
    for before, after in zip(weight.split(size, dim=1), quantized.split(size, dim=1), strict=True):
        low, high = before.amin(1, keepdim=True), before.amax(1, keepdim=True)
        step = (high - low) / 15
        bf16 = 2**-8 * before.abs().amax(1, keepdim=True)  # rounding error of scales and sums
        assert ((after - before).abs() <= step / 2 + 6 * bf16).all()
        for bound, quantized_bound in (
            (low, after.amin(1, keepdim=True)),
            (high, after.amax(1, keepdim=True)),
        ):
            assert ((bound - quantized_bound).abs() <= 6 * bf16).all()
        assert max(len(row.unique()) for row in after) == 16


@pytest.mark.parametrize("embedding", ["tied", "untied"])
@pytest.mark.parametrize("ffn", FFN.names())
@pytest.mark.parametrize("method", METHODS)
def test_quantization_changes_the_loss_little(method: str, ffn: str, embedding: str) -> None:
    model = build_model(f"ffn={ffn}", f"embedding={embedding}")
    before, summary = deepcopy(model), quantize(model, method)
    plain = evaluate(before, random_split(), FP32).loss
    loss = evaluate(model, random_split(), FP32).loss
    assert loss != plain and abs(loss - plain) < MAX_LOSS_CHANGE[method]
    hidden = model.config.ffn.hidden_width(32)
    left = ["tied to the token embedding"] * (embedding == "tied")
    for layer in linears(before).values():
        if method == "int4" and layer.in_features == hidden and hidden % 32:
            left.append(f"in_features={hidden} is not a multiple of 32")
        elif method == "int4" and layer.out_features % 16:  # a router
            left.append(f"out_features={layer.out_features} is not a multiple of 16")
    assert summary.left == {why: left.count(why) for why in left}
    assert summary.layers + len(left) == len(linears(before)) >= 9
    # All other parameters are unchanged.
    linear_weights = {f"{name}.weight" for name in linears(before)}
    for name, parameter in before.named_parameters():
        if name not in linear_weights:
            assert torch.equal(parameter, dict(model.named_parameters())[name])
    tokens = random_split().tokens[None].long()
    assert torch.equal(model.token_embedding(tokens), before.token_embedding(tokens))
    assert (model.head.weight is model.token_embedding.weight) == (embedding == "tied")


def test_reported_bytes() -> None:
    for method, max_ratio in (("int8", 0.28), ("int4", 0.16)):
        model = build_model("model=gpt2", "embedding=untied", n_embd=128, n_head=4)
        table = 4 * (model.token_embedding.weight.numel() + 16 * 128)  # and positions
        vectors = sum(4 * p.numel() for p in model.parameters() if p.ndim == 1)
        shapes = [linear.weight.shape for linear in linears(model).values()]
        summary = quantize(model, method)
        assert summary.layers == len(shapes) == 9
        assert summary.bytes_before == table + vectors + sum(4 * n * k for n, k in shapes)
        if method == "int8":  # each row has a scale of four bytes and a zero point of one
            quantized = sum(n * k + 5 * n for n, k in shapes)
        else:  # two weights per byte; each group has a scale and a zero point of two bytes
            quantized = sum(n * k // 2 + 4 * n * k // 128 for n, k in shapes)
        assert summary.bytes_after == table + vectors + quantized
        assert quantized < max_ratio * sum(4 * n * k for n, k in shapes)
        assert (
            f"9 of 9 linear layers; parameters {summary.bytes_before:,} -> " in summary.describe()
        )
    assert stored_bytes(torch.zeros(3, 5, dtype=torch.bfloat16)) == 30


# --- evaluation and decoding


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_decoding_equals_a_full_pass(method: str, backend: str) -> None:
    design = [f"backend={backend}", "model.head_gates=true", "model.value_residual=x0"]
    design += ["model.head_size=32", "model.block=parallel", "model.bias=qkv"]
    design += ["model.qk_norm=all_channels", "model.score_scale=0.3", "model.final_softcap=5"]
    model = build_model(*design)
    quantize(model, method)
    text = random_split(12).tokens.tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([text]))[0]
        decoder = Decoder(model, [text[:4]], context=16)
        for length in range(4, len(text)):
            error = (decoder.next_logits[0] - expected[length - 1]).abs().max()
            assert error <= ATOL[method]
            decoder.append([text[length]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ffn", ["relu2", "gelu", "swiglu"])
@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_the_loss_little(method: str, ffn: str, backend: str) -> None:
    model = build_model(f"ffn={ffn}", f"backend={backend}", "model=gpt2")
    quantize(model, method)
    exact, rounded = (evaluate(model, random_split(65), runtime).loss for runtime in (FP32, BF16))
    assert exact != rounded and abs(exact - rounded) < 0.01


def test_a_model_without_quantizable_layers_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"^--quantize=int4: no layer can be quantized .* not a multiple"
    ):
        quantize(build_model(n_embd=8), "int4")
    with pytest.raises(UserError, match=r"^--quantize=int8: no layer .* \(tied to the token emb"):
        quantize(build_model("model=bigram", "embedding=tied", n_layer=0), "int8")
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"^--quantize=int4: no kernel on met"),
    ):
        quantize(GPT(replace(composed_config([]).model, **SMALL), 16), "int4")


# --- commands


def test_eval_records_quantized_and_plain_results(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    assert cli("eval", "run").code == 0
    plain = json.loads(Path("run/eval.json").read_text())
    outcome = cli("eval", "run", "--quantize", "int8", "--lengths", "4")
    assert outcome.code == 0 and outcome.err == "", outcome.err
    assert "(best quantize=int8)" in outcome.out and "val, not quantized" in outcome.out
    assert "int8: 5 of 5 linear layers; parameters " in outcome.out
    entries = json.loads(Path("run/eval.json").read_text())
    assert [*entries] == ["best", "best quantize=int8"] and entries["best"] == plain["best"]
    entry = entries["best quantize=int8"]
    difference = entry["quantization"]["val_loss_difference"]
    assert difference == entry["val_loss"] - plain["best"]["val_loss"] != 0
    assert f"validation loss {difference:+.5f} nats/token by int8" in outcome.out
    weights = Path("run/checkpoints/best/model.safetensors").read_bytes()
    assert entry["weights_sha256"] == sha256(weights).hexdigest()
    assert entry["quantization"]["bytes_before"] > 2 * entry["quantization"]["bytes_after"]
    assert Path("run/eval/best_quantize=int8.html").exists()
    assert cli("eval", "run", "--quantize", "int8", "--lengths", "16").code == 0
    more = json.loads(Path("run/eval.json").read_text())
    assert {*more["best quantize=int8"]["lengths"]} == {"4", "16"} and more["best"] == plain["best"]
    # New weights replace the results of earlier weights.
    assert cli("train", "resume=run", "trainer.max_steps=30").code == 0
    assert cli("eval", "run", "--quantize", "int8").code == 0
    after = json.loads(Path("run/eval.json").read_text())["best quantize=int8"]
    assert after["weights_sha256"] != entry["weights_sha256"] and "lengths" not in after


def test_sample_quantized(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run", "model.n_embd=32").code == 0
    arguments = ["sample", "run", "--prompt", "fox", "--max-new-tokens", "30", "--json"]
    plain = cli(*arguments)
    for method in METHODS:
        outcome = cli(*arguments, "--quantize", method)
        assert outcome.code == 0 and outcome.err.startswith(f"{method}: ")
        assert outcome.err.count("\n") == 1 and outcome.out.count("\n") == 1
        assert len(json.loads(outcome.out)["text"]) == len(json.loads(plain.out)["text"]) == 30


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_mistakes_print_one_line(cli: Cli, command: str) -> None:
    small = ["model.n_embd=8", "model.ffn.expansion=1"]
    assert cli("train", *TINY, *small, "trainer.max_steps=1", "hydra.run.dir=run").code == 0
    before = sorted(Path("run").rglob("*"))
    for method, message in (
        ("int3", "--quantize: invalid choice: 'int3'"),
        (
            "int4",
            "--quantize=int4: no layer can be quantized (in_features=8 is not a multiple of 32); ",
        ),
    ):
        outcome = cli(command, "run", "--quantize", method)
        assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
        assert message in outcome.err
    with mock.patch.dict(sys.modules, {"torchao": None}):
        outcome = cli(command, "run", "--quantize", "int8")
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert outcome.err.startswith("minigpt: --quantize=int8: needs torchao (")
    assert install("quantize") in outcome.err
    assert sorted(Path("run").rglob("*")) == before
    refused = cli("inspect", "run", "--quantize", "int8")
    assert refused.code == 2 and "unrecognized arguments: --quantize" in refused.err


def test_torchao_prints_no_warnings(cli: Cli) -> None:
    assert cli("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=run").code == 0
    code = "import sys; from minigpt.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", code, "sample", "run", "--quantize", "int8"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("int8: ") and done.stderr.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_quantize_on_a_gpu(method: str) -> None:
    runtime = Runtime("cuda", "", "bf16", "")
    model = build_model(n_embd=512).cuda()
    split = replace(random_split(), tokens=random_split().tokens.cuda())
    before = evaluate(model, split, runtime).loss
    summary = quantize(model, method)
    assert summary.bytes_after < summary.bytes_before / 2
    assert abs(evaluate(model, split, runtime).loss - before) < 0.5
