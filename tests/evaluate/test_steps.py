"""The prediction step by step: its values are those of the forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt.evaluate.inspect import record
from minigpt.evaluate.inspect_plots import plot_step
from minigpt.evaluate.steps import Step, Watch, steps
from minigpt.html import drawn
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from tests.evaluate.test_inspect import N_VOCAB, SCHEMES, TOKENS, tiny_model
from tests.evaluate.test_inspect_objectives import READS, SOURCE, logits_of, model_of

T, D, E = len(TOKENS), 16, 8


def steps_of(model: GPT, position: int = T - 1, **read: Any) -> dict[str, Step]:
    with Watch(model) as watch:
        recording = record(model, TOKENS, **read)
    return {step.name: step for step in steps(watch, recording, position)}


def values(step: Step) -> torch.Tensor:
    assert step.values is not None
    return step.values


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_step_follows_from_those_before(scheme: str) -> None:
    model = tiny_model(scheme, n_kv_head=1)
    found = steps_of(model)
    embedding = model.token_embedding(torch.tensor(TOKENS)).detach()
    torch.testing.assert_close(values(found["Embedding"]), embedding)
    if scheme in ("learned", "sinusoidal"):
        expected = model.positional.embed(embedding[None], torch.arange(T)[None])[0].detach()
        torch.testing.assert_close(values(found["Positions"]), expected)
    else:
        assert found["Positions"].values is None and scheme in found["Positions"].note
    scores = values(found["Keys"]) @ values(found["Query"]) / E**0.5
    torch.testing.assert_close(values(found["Scores"]), scores)
    has_bias = found["Bias"].values is not None
    assert has_bias == model.positional.overrides("score_mod")
    biased = scores + values(found["Bias"]) if has_bias else scores
    torch.testing.assert_close(values(found["Weights"]), biased.softmax(0))
    hidden, normed = values(found["After the blocks"]), values(found["Final norm"])
    torch.testing.assert_close(normed, model.final_norm(hidden).detach())
    torch.testing.assert_close(values(found["Logits"]), model.logits(normed).detach())
    logits = model(torch.tensor([TOKENS]))[0, -1].detach()
    torch.testing.assert_close(values(found["Probabilities"]), logits.softmax(0))
    shapes = {"Tokens": f"t = {T}", "Embedding": f"(t, d) = ({T}, {D})", "Query": f"e = {E}"}
    shapes |= {"Keys": f"(t, e) = ({T}, {E})", "Weights": f"t = {T}", "Weighted sum": f"e = {E}"}
    shapes |= {"After the blocks": f"d = {D}", "Logits": f"n = {N_VOCAB}"}
    assert {name: found[name].shape for name in shapes} == shapes


def test_a_mask_hides_keys() -> None:
    found = steps_of(tiny_model("alibi", "attention=sliding_window", "model.attention.window=3"))
    assert values(found["Mask"]).tolist() == [0, 0, 0, 1, 1, 1]
    assert found["Mask"].note == "3 of 6 keys are visible."
    seen = (values(found["Scores"]) + values(found["Bias"]))[3:]
    torch.testing.assert_close(values(found["Weights"])[3:], seen.softmax(0))
    assert values(steps_of(tiny_model("rope"), 2)["Mask"]).tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("attention", ATTENTION.names())
def test_every_attention_has_weights(attention: str) -> None:
    model = tiny_model("rope", f"attention={attention}")
    found = steps_of(model)
    has_scores = found["Scores"].values is not None
    assert has_scores == model.attention_by_layer[0].uses_backend
    assert has_scores or attention in found["Scores"].note
    torch.testing.assert_close(values(found["Weights"]).sum(), torch.tensor(1.0))


def test_a_model_without_layers_or_final_norm_says_so() -> None:
    found = steps_of(tiny_model("nope", n_layer=0))
    assert found["Attention"].note == "None: the model has no layers."
    assert "only the mask" in found["Positions"].note
    assert "None: " in steps_of(tiny_model("rope", "norm=post"))["Final norm"].note


@pytest.mark.parametrize("architecture", READS)
def test_other_architectures(architecture: str) -> None:
    read, model = READS[architecture], model_of(architecture)
    found = steps_of(model, 2, **read)
    torch.testing.assert_close(values(found["Logits"]), logits_of(model, **read)[2])
    biased = values(found["Scores"]) + values(found["Bias"]).nan_to_num(neginf=0)
    seen = values(found["Mask"]) == 1
    n_seen = {"prefix_decoder": 4, "encoder": T, "encoder_decoder": 3}[architecture]
    assert seen.tolist() == [True] * n_seen + [False] * (T - n_seen)
    torch.testing.assert_close(values(found["Weights"])[seen], biased[seen].softmax(0))
    assert ("Cross-attention" in found) == (architecture == "encoder_decoder")
    if "Cross-attention" in found:
        assert found["Cross-attention"].shape == f"s = {len(SOURCE)}"


def test_hooks_are_removed() -> None:
    model = tiny_model("rope")
    with Watch(model) as watch:
        record(model, TOKENS)
    before = dict(watch.returned)
    record(model, TOKENS[:3])
    assert all(watch.returned[name] is before[name] for name in before)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (50_000,)])
def test_pictures_are_small(shape: tuple[int, ...]) -> None:
    """A vocabulary is drawn as an image, not as so many shapes."""
    assert 500 < len(drawn(plot_step(torch.randn(shape)), "svg")) < 60_000
