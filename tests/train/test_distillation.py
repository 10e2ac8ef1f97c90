"""Distillation: the loss equals its formula, and a student learns from its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from minigpt.objective.base import CausalConfig
from minigpt.train.distillation import Distillation
from tests.conftest import TINY, Cli, read_metrics
from tests.model.tiny import random_model, random_tokens, tiny_config

STUDENT = ["train", *TINY, "trainer.sample_every=null", "objective.teacher=teacher"]


@pytest.fixture
def teacher(cli: Cli) -> Path:
    done = cli("train", *TINY, "trainer.sample_every=null", "hydra.run.dir=teacher")
    assert done.code == 0, done.err
    return Path("teacher")


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.0), (2.0, 0.5), (3.0, 1.0)])
def test_the_loss_equals_its_formula(temperature: float, weight: float) -> None:
    student, teacher = random_model(tiny_config()), random_model(tiny_config())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    tokens, targets = random_tokens(2, 5), random_tokens(2, 5, seed=1)
    config = CausalConfig(temperature=temperature, weight=weight)
    loss, metrics = Distillation(student, teacher, config)(tokens, targets)
    expected, divergences, entropies = 0.0, [], []
    for row in range(2):
        for t in range(5):
            logits, theirs = (model(tokens)[row, t].float() for model in (student, teacher))
            p = (theirs / temperature).softmax(0)
            q = (logits / temperature).softmax(0)
            divergences.append(sum(p[i] * (p[i] / q[i]).log() for i in range(len(p))))
            entropies.append(-logits.log_softmax(0)[targets[row, t]])
    divergence, entropy = (torch.stack(values).mean() for values in (divergences, entropies))
    expected = (1 - weight) * entropy + weight * temperature**2 * divergence
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["distillation"], divergence.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["train_loss"], entropy.detach(), rtol=1e-4, atol=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_approaches_its_teacher(cli: Cli, teacher: Path) -> None:
    options = ["objective.weight=1.0", "optimizer.lr=0.02", "trainer.max_steps=60"]
    done = cli(*STUDENT, *options, "hydra.run.dir=student", "model.n_embd=8")
    assert done.code == 0, done.err
    lines = [line for line in read_metrics(Path("student")) if "distillation" in line]
    assert lines[-1]["distillation"] < 0.5 * lines[0]["distillation"]
    assert json.loads(Path("student/result.json").read_text())["status"] == "finished"


def test_a_resumed_run_needs_the_same_teacher(cli: Cli, teacher: Path) -> None:
    assert cli(*STUDENT, "hydra.run.dir=student").code == 0
    shutil.rmtree(teacher)
    assert cli("train", *TINY, "seed=2", "hydra.run.dir=teacher").code == 0
    done = cli("train", "resume=student", "trainer.max_steps=20")
    assert done.code == 2 and "its weights have changed since this run started" in done.err
    assert cli("sample", "student", "--max-new-tokens", "2").code == 0  # needs no teacher


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective.teacher=nowhere"], "nowhere: no such run or folder"),
        (["tokenizer=bpe"], "teacher: has another tokenizer"),
        (["objective.teacher=null", "objective.weight=0.9"], "objective.weight=0.9: is of"),
        (["objective.weight=2"], "objective.weight=2.0: must be from 0 to 1"),
        (["objective.temperature=0"], "objective.temperature=0.0: must be above 0"),
        (["trainer.compile=true"], "trainer.compile=true: a teacher has no compiled loss"),
        (["ffn=moe"], "ffn=moe: is not balanced with objective.teacher"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    cli: Cli, teacher: Path, arguments: list[str], message: str
) -> None:
    done = cli(*STUDENT, "hydra.run.dir=new", *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1 and not Path("new").exists()
