"""Pseudo-perplexity, compared with a loop that masks one token after the other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.data.tokens import Split
from minigpt.evaluate import loss, pseudo
from minigpt.evaluate.pseudo import evaluate_pseudo
from minigpt.objective import OBJECTIVES
from minigpt.runtime import choose_runtime
from minigpt.tokenizer.char import CharTokenizer
from tests.conftest import TINY, Cli
from tests.model.tiny import random_model, random_tokens, tiny_config

CPU = choose_runtime("cpu", "fp32")


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("n_tokens", [4, 8, 50])
def test_each_token_is_predicted_from_the_others(
    monkeypatch: pytest.MonkeyPatch, n_tokens: int, documents: bool
) -> None:
    monkeypatch.setattr(pseudo, "N_TARGETS", 24)
    monkeypatch.setattr(loss, "TOKENS_IN_CACHE", 24)  # three of the eight copies of a window
    tokenizer, config = CharTokenizer("abcdeéghijk"), composed_config(["objective=masked"])
    objective = OBJECTIVES.build(config.objective, tokenizer, 8)
    design = objective.design(config.objective, 8)
    model = random_model(replace(tiny_config("t5", block_size=8), **design))
    tokens = random_tokens(1, n_tokens)[0]
    ids = (tokens == 3).long().cumsum(0) if documents else None
    result, n = evaluate_pseudo(model, Split("val", tokens, n_tokens, ids), objective, CPU)
    length = min(8, n_tokens - 1)
    last = n_tokens - 1 - length
    n_windows = min(3, last // length + 1)
    starts = [round(last * i / max(1, n_windows - 1)) for i in range(n_windows)]
    total, n_bytes = 0.0, 0
    with torch.no_grad():
        for start in starts:
            window = tokens[start : start + length]
            own = None if ids is None else ids[None, start : start + length]
            for position in range(length):
                inputs = window.clone()
                inputs[position] = 11
                logits = model(inputs[None], document_ids=own)[0, position]
                total -= float(logits.log_softmax(-1)[window[position]])
            n_bytes += sum(2 if token == 5 else 1 for token in window.tolist())
    assert n == n_windows * length
    assert result.loss == pytest.approx(total / n, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)
    assert sum(result.by_position) / length == pytest.approx(total / n, rel=1e-5)


def test_eval_pseudo(cli: Cli) -> None:
    for name in ("masked", "causal"):
        assert cli("train", *TINY, f"objective={name}", f"hydra.run.dir={name}").code == 0
    done = cli("eval", "masked", "--pseudo")
    assert done.code == 0 and "pseudo-perplexity" in done.out, done.err
    saved = json.loads(Path("masked/eval.json").read_text())["best"]
    assert saved["pseudo_perplexity"] == pytest.approx(math.exp(saved["pseudo_loss"]))
    assert saved["pseudo_tokens"] % 8 == 0
    refused = cli("eval", "causal", "--pseudo")
    assert refused.code == 2 and refused.err == (
        "minigpt: --pseudo=true: masks one token at a time, and objective=causal has no mask; "
        "leave it out\n"
    )
