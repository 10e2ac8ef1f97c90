"""Checks of configs before a model is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.backends import BackendConfig
from minigpt.model.compatibility import (
    Problem,
    choose_backend,
    problems,
    replica_problems,
    require_compatible,
)
from tests.model.tiny import N_VOCAB, tiny_config


def test_a_problem_has_key_value_reason_and_remedy() -> None:
    reported = problems(tiny_config(n_head=5, attention="performer", dropout=0.1))
    assert [problem.key for problem in reported] == ["model.n_head", "attention"]
    assert reported[0] == Problem(
        *("model.n_head", 5),
        "must divide model.n_embd=12; use 3, 4, 6 heads, or another n_embd",
    )
    assert str(reported[0]) == (
        "model.n_head=5: must divide model.n_embd=12; use 3, 4, 6 heads, or another n_embd"
    )


def test_require_compatible_raises_the_first_problem() -> None:
    config = tiny_config(attention="performer", dropout=0.1)
    with pytest.raises(
        UserError, match=r"^attention=performer: it has no attention weights .*; set that to 0"
    ):
        require_compatible(config)
    with pytest.raises(AssertionError, match="attention=performer"):
        GPT(config, N_VOCAB)
    require_compatible(tiny_config())


def test_problems_of_documents_optimizer_and_backend() -> None:
    assert problems(tiny_config(attention="landmark", attention_options={"block": 2})) == []
    (problem,) = problems(
        tiny_config(attention="landmark", attention_options={"block": 2}), documents=True
    )
    assert str(problem).startswith("attention=landmark: cannot mask other documents of a row; use ")
    bigram = tiny_config("nope", n_layer=0)
    assert problems(bigram, optimizer="adamw") == []
    (problem,) = problems(bigram, optimizer="muon")
    assert str(problem) == "optimizer=muon: has no matrix to update; use adamw"
    flex = replace(tiny_config(), backend=BackendConfig("flex"))
    assert problems(flex) == problems(flex, "cpu", "inference") == []
    (problem,) = problems(flex, "cpu", "training")
    with pytest.raises(UserError) as error:
        choose_backend(flex, "cpu", False, "training")
    assert str(error.value) == str(problem)


def test_replicas_reject_dropout_experts_and_fused_attention() -> None:
    assert replica_problems(tiny_config()) == []
    keys = [p.key for p in replica_problems(tiny_config("rope", "moe", "sdpa", dropout=0.1))]
    assert keys == ["model.dropout", "ffn", "model.backend.name"]
