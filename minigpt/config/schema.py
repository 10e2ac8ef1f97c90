"""The typed config of a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from minigpt.config.paths import absolute_path
from minigpt.data.corpus import CORPORA, DataConfig
from minigpt.errors import require
from minigpt.files import sha256
from minigpt.logger import LOGGERS, LoggerConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.model.gpt import ModelConfig
from minigpt.model.positional import POSITIONAL
from minigpt.optim.optimizer import OPTIMIZERS, OptimizerConfig
from minigpt.optim.schedule import SCHEDULES, ScheduleConfig
from minigpt.registry import Registry
from minigpt.runtime import DEVICES, PRECISIONS
from minigpt.tokenizer import TOKENIZERS, TokenizerConfig

REGISTRIES: dict[str, Registry[Any]] = {
    registry.key: registry
    for registry in (
        *(CORPORA, TOKENIZERS, POSITIONAL, ATTENTION, FFN),
        *(OPTIMIZERS, SCHEDULES, LOGGERS),
    )
}


@dataclass
class TrainerConfig:
    """How long and on what. `*_every` counts steps; null is only at the end, for samples never.

    `grad_accum_steps`: micro-batches that a batch is split into, to save memory. The result is the
    same, except that routed experts are balanced over each micro-batch.
    `patience`: evaluations without a better validation loss before stopping early.
    """

    max_steps: int
    batch_size: int
    grad_accum_steps: int
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None
    sample_every: int | None
    sample_tokens: int
    sample_prompt: str
    patience: int | None
    device: str
    precision: str
    compile: bool
    threads: int | None

    def __post_init__(self) -> None:
        require(self.max_steps >= 0, "trainer.max_steps", self.max_steps, "must be 0 or more")
        require(self.sample_prompt != "", "trainer.sample_prompt", "", "must not be empty")
        for key in ("batch_size", "grad_accum_steps", "log_every", "sample_tokens"):
            value = getattr(self, key)
            require(value >= 1, f"trainer.{key}", value, "must be 1 or more")
        for key in ("eval_every", "checkpoint_every", "sample_every", "patience", "threads"):
            value = getattr(self, key)
            why = "must be 1 or more, or null"
            require(value is None or value >= 1, f"trainer.{key}", value, why)
        require(
            self.batch_size % self.grad_accum_steps == 0,
            "trainer.grad_accum_steps",
            self.grad_accum_steps,
            f"must divide trainer.batch_size={self.batch_size}",
        )
        for key, known in (("device", DEVICES), ("precision", PRECISIONS)):
            value = getattr(self, key)
            require(value in known, f"trainer.{key}", value, f"use one of {', '.join(known)}")


@dataclass
class Config:
    """Everything that decides a run."""

    name: str | None
    group: str | None
    tags: list[str]
    seed: int
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    logger: LoggerConfig

    def __post_init__(self) -> None:
        # Beyond 32 bits torch's CPU generator takes different seeds for the same.
        require(0 <= self.seed < 2**32, "seed", self.seed, "must be from 0 to 2^32 - 1")
        if self.data.separator is not None:
            require_documents(self.model.attention.name)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values."""
        return dataclasses.asdict(self)


def require_documents(attention: str) -> None:
    """Raise UserError for an attention that cannot keep documents apart."""
    able = [name for name in ATTENTION.names() if ATTENTION.variant(name).documents]
    why = f"cannot keep documents apart; use {', '.join(able)}, or data.document_separator=null"
    require(attention in able, "attention", attention, why)


def request_sha256(config: Config) -> str:
    """Digest of what decides a run's numbers, as asked for: no names, trackers or threads."""
    asked = {
        k: v for k, v in config.to_dict().items() if k not in ("name", "group", "tags", "logger")
    }
    asked["trainer"] = {k: v for k, v in asked["trainer"].items() if k != "threads"}
    asked["data"] = {k: v for k, v in asked["data"].items() if k != "dir"}
    if "path" in asked["data"]:
        asked["data"]["path"] = absolute_path(asked["data"]["path"])
    return sha256(json.dumps(asked, sort_keys=True))
