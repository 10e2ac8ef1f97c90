"""The start of positional schemes against the scale of what they are added to."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.model import GPT, ModelConfig
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import PositionalScheme
from tests.model.contract import VARIANT_IDS, VARIANTS
from tests.model.tiny import random_tokens, tiny_config


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


class Recorder:
    """Calls the hooks of a scheme; records, per hook and layer, what it adds to over what it adds.

    `ratios`: RMS of positions / RMS of content. `spreads`: standard deviation of the biases over
    the keys of a query, in units of the softmax.
    """

    def __init__(self, scheme: PositionalScheme) -> None:
        self.scheme = scheme
        self.hooks = scheme.embed, scheme.block_input, scheme.rotate, scheme.score_mod
        self.ratios: dict[str, list[float]] = defaultdict(list)
        self.spreads: list[float] = []
        scheme.embed, scheme.block_input = self.embed, self.block_input
        scheme.rotate, scheme.score_mod = self.rotate, self.score_mod

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        mixed, alone = (self.hooks[0](part, positions) for part in (x, torch.zeros_like(x)))
        self.ratios["embed"].append(rms(alone) / rms(mixed - alone))
        return mixed

    def block_input(self, x: Tensor, positions: Tensor, layer: int) -> Tensor:
        alone = self.hooks[1](torch.zeros_like(x), positions, layer)
        self.ratios["block_input"].append(rms(alone) / rms(x))
        return x + alone

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        rotated = self.hooks[2](q, k, positions, layer)
        scores = [(q @ k.mT).tril() for q, k in (rotated, (q, k))]
        self.ratios["rotate"].append(rms(scores[0]) / rms(scores[1]))
        return rotated

    def score_mod(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor, layer: int
    ) -> Any:
        score_mod = self.hooks[3](q, k, q_positions, k_positions, layer)
        if score_mod is None:
            return None
        b, h, t, e = q.shape
        grid = torch.meshgrid(*map(torch.arange, (b, h, t, t)), indexing="ij")
        bias, causal = score_mod(torch.zeros(()), *grid), torch.ones(t, t).tril().bool()
        scores = q @ k.mT / math.sqrt(e)
        self.ratios["score_mod"].append(rms(bias[..., causal]) / rms(scores[..., causal]))
        self.spreads.append(bias[:, :, -1].std(-1).square().mean().sqrt().item())
        return score_mod


def recorded(config: ModelConfig) -> Recorder:
    """Return what the scheme of a new model adds in a forward pass."""
    torch.manual_seed(0)
    model = GPT(config, 65)
    recorder = Recorder(model.positional)
    with torch.no_grad():
        model(random_tokens(4, config.block_size, 65))
    return recorder


@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk_norm"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("scheme", "options"), VARIANTS, ids=VARIANT_IDS)
def test_positions_start_at_the_scale_of_content(
    scheme: str, options: dict[str, Any], placement: str, qk_norm: bool
) -> None:
    sizes: dict[str, Any] = {"n_embd": 64, "n_head": 8, "block_size": 32, "qk_norm": qk_norm}
    if placement == "no_residual":  # later layers have smaller inputs, as the first ones give
        sizes["n_layer"] = 1
    config = tiny_config(scheme, placement=placement, options=options, **sizes)
    recorder = recorded(config)
    assert recorder.ratios
    if recorder.scheme.bias_depends_on in ("positions", "layer"):  # added to any score
        del recorder.ratios["score_mod"]
        assert max(recorder.spreads) < 5
    if "sinusoidal" in options.values():  # sinusoids are added to embeddings as they are
        first = {"post": 1, "output": None, "no_residual": None}.get(
            placement, 0
        )  # None: all layers read embeddings
        del recorder.ratios["block_input"][:first]
    for hook, ratios in recorder.ratios.items():
        for ratio in ratios:
            assert ratio == 0 or 0.2 < ratio < 5, (hook, ratios)
