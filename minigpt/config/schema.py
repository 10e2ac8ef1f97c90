"""The typed config of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minigpt.config.foreign import our_value
from minigpt.data.corpus import CORPORA, DataConfig, require_valid_escapes
from minigpt.errors import UserError, require, require_at_least, require_one_of
from minigpt.files import absolute_path, sha256
from minigpt.logger import LOGGERS, LoggerConfig
from minigpt.loss_of import NOT_COMPARED, grouped
from minigpt.model.adapter import ADAPTERS, AdapterConfig
from minigpt.model.attention import ATTENTION
from minigpt.model.compatibility import require_compatible
from minigpt.model.config import ModelConfig
from minigpt.model.ffn import FFN
from minigpt.model.positional import POSITIONAL
from minigpt.objective.base import CAUSAL_DESIGN, OBJECTIVES, CausalConfig, ObjectiveConfig
from minigpt.optim.optimizer import OPTIMIZERS, OptimizerConfig
from minigpt.optim.schedule import SCHEDULES, ScheduleConfig
from minigpt.registry import Registry
from minigpt.runtime import DEVICES, GRAPHS, PARALLELS, PRECISIONS
from minigpt.tokenizer import TOKENIZERS, TokenizerConfig

REGISTRIES: dict[str, Registry[Any]] = {
    registry.key: registry
    for registry in (
        *(CORPORA, TOKENIZERS, POSITIONAL, ATTENTION, FFN, OBJECTIVES),
        *(ADAPTERS, OPTIMIZERS, SCHEDULES, LOGGERS),
    )
}

CHOICES_OF_COMPILE = "must be auto, true or false"


WHY_NOT_TP = (
    "not built: queries, keys and values are one matrix, whose rows torch's parallelize_module "
    "would split across the boundaries between them"
)


@dataclass
class TrainerConfig:
    """Options of the training loop. `*_every` are intervals in steps.

    `eval_every`, `checkpoint_every`: None means only after the last step. `sample_every`: None
    means never. `log_every` must be a number. `grad_accum_steps`: micro-batches per batch, to save
    memory; results are equal, except that a mixture of experts is balanced over each micro-batch.
    `sample_prompt`: with \\n, \\t, \\r and \\\\ as escapes. None: a newline if the vocabulary has
    it, else the first character of the text.
    `compile`: true, false, or auto, which compiles if that is expected to take less time.
    `graph`: whether a GPU replays the whole step as one CUDA graph; auto: where that is possible.
    `patience`: evaluations without a lower validation loss before stopping early; needs
    `eval_every`.
    `guessing_patience`: steps in a row with a training loss above ln(vocabulary) before the run
    fails; None only warns.
    `parallel`: how the run is spread over several processes, each with a device. `processes`: how
    many this command starts; None: torchrun has started them. `timeout`: seconds after which a
    process that does not answer the others counts as lost.
    """

    max_steps: int
    batch_size: int
    grad_accum_steps: int
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None
    sample_every: int | None
    sample_tokens: int
    sample_prompt: str | None
    patience: int | None
    device: str
    precision: str
    compile: bool | str
    threads: int | None
    guessing_patience: int | None = None
    graph: str = "off"
    parallel: str = "none"
    processes: int | None = None
    timeout: float = 600.0

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward pass."""
        return self.batch_size // self.grad_accum_steps

    def __post_init__(self) -> None:
        require_at_least(0, "trainer", self, "max_steps")
        key, prompt = "trainer.sample_prompt", self.sample_prompt
        require(prompt != "", key, "", "empty; give at least one character, or null")
        if prompt is not None:
            require_valid_escapes(key, prompt)
        counts = ("batch_size", "grad_accum_steps", "log_every", "sample_tokens")
        require_at_least(1, "trainer", self, *counts)
        optional = ("eval_every", "checkpoint_every", "sample_every", "threads", "processes")
        patience = ("patience", "guessing_patience")
        require_at_least(1, "trainer", self, *optional, *patience, or_null=True)
        n, why = self.grad_accum_steps, f"must divide trainer.batch_size={self.batch_size}"
        require(self.batch_size % n == 0, "trainer.grad_accum_steps", n, why)
        known = self.compile in (True, False, "auto")
        require(known, "trainer.compile", self.compile, CHOICES_OF_COMPILE)
        # YAML reads an unquoted on or off as a boolean, so that true is on.
        self.graph = {"True": "on", "False": "off"}.get(self.graph, self.graph)
        why = f"{WHY_NOT_TP}; use ddp or fsdp"
        require(self.parallel != "tp", "trainer.parallel", "tp", why)
        choices = (DEVICES, PRECISIONS, GRAPHS, PARALLELS)
        names = ("device", "precision", "graph", "parallel")
        for name, known in zip(names, choices, strict=True):
            value = getattr(self, name)
            require_one_of(f"trainer.{name}", value, known, hint=our_value(name, value))
        require(self.timeout > 0, "trainer.timeout", self.timeout, "must be above 0 seconds")
        alone = self.parallel == "none"
        why = "trains on one device; add trainer.parallel=ddp, or trainer.processes=null"
        require(self.processes is None or not alone, "trainer.processes", self.processes, why)
        n, why = self.micro_batch_size, "windows for as many processes at most; use fewer"
        ok = self.processes is None or self.processes <= n
        require(ok, "trainer.processes", self.processes, f"a micro-batch has {n} {why}")
        for key, value in (("compile", self.compile), ("graph", self.graph)):
            why = f"is not supported with trainer.parallel={self.parallel}; use auto"
            require(alone or value not in (True, "on"), f"trainer.{key}", value, why)


@dataclass
class Config:
    """All options of a run.

    `init`: the absolute path of the run or folder whose weights it starts from, and whose design
    and tokenizer it has; None: random weights.
    """

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
    init: str | None = None
    adapter: AdapterConfig = field(default_factory=lambda: AdapterConfig("none"))
    objective: ObjectiveConfig = field(default_factory=CausalConfig)

    def __post_init__(self) -> None:
        # torch's CPU generator uses only the lowest 32 bits of a seed.
        require(0 <= self.seed < 2**32, "seed", self.seed, "must be from 0 to 2^32 - 1")
        why = "adapts trained weights; give them with init=PATH"
        is_used = self.adapter.name == "none" or self.init is not None
        require(is_used, "adapter", self.adapter.name, why)
        compiled, why = self.trainer.compile, "has no compiled loss; use auto or false"
        distils = self.teacher is not None
        require(not (distils and compiled is True), "trainer.compile", "true", f"a teacher {why}")
        has_experts, why = self.model.ffn.name == "moe", "is not balanced with objective.teacher"
        require(not (distils and has_experts), "ffn", "moe", f"{why}; use another")
        objective, documents = OBJECTIVES.variant(self.objective.name), self.data.separator
        key, why = "data.document_separator", objective.needs_one_document
        needs = f"objective={self.objective.name}: {why}; use null, or another objective"
        require(why is None or documents is None, key, documents, needs)
        self.model = replace(self.model, **objective.design(self.objective, self.model.block_size))
        require_compatible(
            self.model, documents=documents is not None, optimizer=self.optimizer.name
        )

    @property
    def task(self) -> dict[str, Any]:
        """What decides which tokens are predicted. Only losses of the same task compare."""
        if OBJECTIVES.variant(self.objective.name).predicts_all:
            return {"name": self.objective.name}
        tokenizer = {f"tokenizer.{key}": x for key, x in dataclasses.asdict(self.tokenizer).items()}
        windows = {"model.block_size": self.model.block_size}
        return dataclasses.asdict(self.objective) | tokenizer | windows

    @property
    def teacher(self) -> str | None:
        """The run whose predictions are learned too, if any."""
        return self.objective.teacher if isinstance(self.objective, CausalConfig) else None

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        return dataclasses.asdict(self)


def require_one_task(configs: Sequence[Config]) -> None:
    """Raise UserError unless the losses of all configs are of the same tokens."""
    tasks = grouped(configs, lambda config: config.task)
    if len(tasks) > 1:
        raise UserError(f"objective={', '.join(tasks)}: {NOT_COMPARED} Use one")


def request_sha256(config: Config) -> str:
    """Return a digest of the options that change results: not names, tracker, threads or data.dir.

    `config` is the requested config, in which `auto` and null are not resolved yet.
    """
    values = config.to_dict()
    if config.init is None:  # as in versions without these options
        del values["init"], values["adapter"]
    if config.objective == CausalConfig():
        del values["objective"]
        for key in (*CAUSAL_DESIGN, "n_encoder_layer", "shared_embedding"):
            del values["model"][key]
    for key in ("name", "group", "tags", "logger"):
        del values[key]
    if config.trainer.parallel == "none":
        del values["trainer"]["parallel"]
    del values["trainer"]["processes"], values["trainer"]["timeout"]
    del values["trainer"]["threads"], values["data"]["dir"]
    if "path" in values["data"]:
        values["data"]["path"] = absolute_path(values["data"]["path"])
    return sha256(json.dumps(values, sort_keys=True))
