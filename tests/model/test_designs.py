"""Every combination of choices either trains or is rejected with a reason."""

from __future__ import annotations

import itertools

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.optim.optimizer import OPTIMIZERS
from tests.model.contract import SCHEMES
from tests.model.tiny import N_VOCAB, composed_model, first_problem, random_tokens, tiny_config

# Pairs of choices that cannot be combined, and part of the error message.
REFUSED = {
    ("cope", "landmark"): "positional=cope counts over all keys",
    ("landmark", "conv"): "ffn=conv would convolve its landmarks",
    **{
        (scheme, "performer"): "to which this positional scheme adds"
        for scheme in SCHEMES
        if POSITIONAL.variant(scheme).overrides("score_mod")
    },
}


@pytest.mark.parametrize(("scheme", "attention"), [*itertools.product(SCHEMES, ATTENTION.names())])
def test_every_design_trains_or_is_refused(scheme: str, attention: str) -> None:
    optimizer_config = composed_config([]).optimizer
    tokens = random_tokens(2, 17)
    for ffn, placement in itertools.product(FFN.names(), PLACEMENTS):
        if ffn.endswith("_tanh") and placement != "pre":
            continue  # only another activation
        # With scaled initialization every parameter gets a gradient at the first step.
        config = tiny_config(
            *(scheme, ffn),
            placement=placement,
            attention=attention,
            n_layer=1,
            n_embd=24,
            residual_init="scaled",
        )
        names = (scheme, attention, ffn, placement)
        reasons = [reason for pair, reason in REFUSED.items() if {*pair} <= {*names}]
        problem = first_problem(config)
        assert (problem is None) == (not reasons), f"{names}: {problem or 'not refused'}"
        if problem is not None:
            assert problem.startswith(f"attention={attention}: ")
            assert any(reason in problem for reason in reasons)
            continue
        torch.manual_seed(0)
        model = GPT(config, N_VOCAB).train()
        if placement == "no_residual":  # without norms, gradients are too small for float32
            model = model.double()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = OPTIMIZERS.build(optimizer_config, model)
        for _ in range(2):
            optimizer.zero_grad()
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
        for name, p in model.named_parameters():
            may_be_unused = ".experts." in name  # an expert may receive no token
            assert p.isfinite().all(), (names, name)
            assert may_be_unused or not torch.equal(p, before[name]), (names, name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention=chunked", "model.attention.chunk=0"], "model.attention.chunk=0: must be 1 "),
        (
            ["attention=sliding_window", "model.attention.window=0"],
            "model.attention.window=0: must be 1 or more",
        ),
        (["attention=bigbird", "model.attention.block=0"], "model.attention.block=0: must be 1 "),
        (
            ["attention=bigbird", "model.attention.n_random=-1"],
            "model.attention.n_random=-1: must be 0 or more",
        ),
        (
            ["attention=performer", "model.attention.features=0"],
            "model.attention.features=0: must be 1 or more",
        ),
        (
            ["attention=performer", "model.attention.features=100000000"],
            "model.attention.features=100000000: must be at most 65536",
        ),
        (
            ["attention=chunked", "model.attention.layers=[]"],
            r"model.attention.layers=\[\]: give names, such as \[chunked,full\]",
        ),
        (
            ["attention=chunked", "model.attention.layers=[chunkd]"],
            "model.attention.layers=chunkd: not one of chunked, full. Did you mean chunked",
        ),
        (
            ["attention=chunked", "model.attention.layers=[full]"],
            "model.attention.layers=.*: no layer uses it; add chunked",
        ),
        (
            ["attention=landmark", "model.attention.retrieved=0"],
            "model.attention.retrieved=0: must be 1 or more",
        ),
        (
            ["attention=sliding_window", "model.attention.window=129"],
            "model.attention.window=129: exceeds model.block_size=128; use that or less",
        ),
        (
            ["attention=bigbird", "model.attention.seed=10000000000000000000"],
            "model.attention.seed=10000000000000000000: must be from 0 to",
        ),
        (
            *(["attention=chunked", "model.attention.layers=[full,chunked]", "model.n_layer=1"],),
            r"model.attention.layers=.*: no layer of model.n_layer=1 uses chunked; put it first",
        ),
        (["attention=landmark", "model.attention.block=7"], "model.attention.block=7: .*=128 must"),
        (["attention=landmark", "model.attention.block=128"], "model.attention.block=128: .*two"),
        (["attention=performer", "model.dropout=0.1"], "attention=performer: .*model.dropout"),
        (
            ["attention=performer", "model.logit_softcap=5"],
            "attention=performer: .*model.logit_softcap",
        ),
        (
            ["model=bigram", "attention=chunked"],
            "attention=chunked: needs blocks, but model.n_layer=0 has no blocks; use full",
        ),
        (["model=bigram", "ffn=moe"], "ffn=moe: needs blocks, but .*; use relu2"),
        (["model=bigram", "ffn=conv"], "ffn=conv: needs blocks, but .*; use relu2"),
        (["model=bigram", "model.n_layer=2"], "model=bigram: a bigram has .*; set model.n_layer=0"),
        (["model=bigram", "model.n_kv_head=1"], "model.n_kv_head=1: needs blocks, .*; use null"),
        (["model=bigram", "model.logit_softcap=5"], "model.logit_softcap=5.0: needs .*; use null"),
        (["model.qk_norm=gains"], "model.qk_norm=gains: must be true, false, gain or "),
        (["attention=windowed"], "attention=windowed: no such attention"),
        (["ffn=conv", "model.ffn.kernel=0"], "model.ffn.kernel=0: must be 1 or more"),
        (["ffn=conv", "model.ffn.kernel=129"], "model.ffn.kernel=129: exceeds model.block_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_options_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        composed_config(overrides)


@pytest.mark.parametrize("attention", ["performer", "landmark"])
def test_performer_and_landmark_reject_backends(attention: str) -> None:
    for name in ("sdpa", "flex"):
        model = GPT(composed_model(f"attention={attention}", f"backend={name}"), N_VOCAB)
        with pytest.raises(
            UserError, match=rf"^model\.backend\.name={name}: .*its own implementation"
        ):
            model.use_backend("cpu", bf16=False, use="training")
    model = GPT(composed_model(f"attention={attention}"), N_VOCAB)
    assert "its own implementation" in model.use_backend("cpu", bf16=False, use="training")


def test_flops_count_unmasked_keys() -> None:
    sizes = ["model.n_layer=2", "model.n_embd=32", "model.n_head=2", "model.block_size=64"]

    def flops(*overrides: str) -> int:
        return GPT(composed_model(*sizes, *overrides), N_VOCAB).flops_per_token(16)

    full = flops("attention=full")
    flops_per_key = 12 * 32  # of one layer
    for attention, keys in (("sliding_window", 16), ("chunked", 16), ("bigbird", 16)):
        assert full - flops(f"attention={attention}") == 2 * flops_per_key * (64 - keys)
    mixed_layers = flops("attention=sliding_window", "model.attention.layers=[full,sliding_window]")
    assert full - mixed_layers == flops_per_key * (64 - 16)
    # Products of a query with the keys of its pattern, or with each distance within it.
    for scheme, keys in (("integrated", 64), ("relative", 64), ("cope", 2 * 64 + 1)):
        assert flops(f"model={scheme}") - full == flops_per_key * keys
    for scheme, keys in (("integrated", 16), ("relative", 16), ("cope", 2 * 16 + 1)):
        chunked = flops("attention=chunked"), flops(f"model={scheme}", "attention=chunked")
        assert chunked[1] - chunked[0] == flops_per_key * keys
