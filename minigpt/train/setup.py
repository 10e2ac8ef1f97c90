"""Build and check model, optimizer and data of a run before anything is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from minigpt.config.schema import Config
from minigpt.data import TokenData
from minigpt.data.corpus import escape
from minigpt.data.prepare import Prepared
from minigpt.model import GPT
from minigpt.model.adapter import ADAPTERS
from minigpt.model.compatibility import choose_graph
from minigpt.objective.base import OBJECTIVES, Objective
from minigpt.optim.average import WeightAverage
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.run.load import Initial
from minigpt.runtime import Runtime, reset_peak_memory
from minigpt.tokenizer import Tokenizer
from minigpt.train.compilation import Choice, Loss, Planned, choose_compilation
from minigpt.train.distillation import training_loss
from minigpt.train.distributed import PARALLEL, Parallel
from minigpt.train.state import TrainState

# Added to the seed, so that batches and initial weights come from different random streams.
# torch's CPU generator uses only the lowest 32 bits of a seed.
BATCH_SEED = 0x5EED
RANK_SEED = 0xD15C  # times the rank: of the random numbers of other processes than the first


@dataclass(frozen=True)
class Setup:
    """A resolved config, with the objects built from it. Data and model are on the device.

    `backend`: the attention backend of training steps, and the reason for its choice.
    `compilation`: whether training steps are compiled. `graph`: whether they are replayed as a
    CUDA graph, and the reason. `loss`: what each step minimizes, of batches of the `objective`.
    """

    config: Config
    runtime: Runtime
    tokenizer: Tokenizer
    data: TokenData
    state: TrainState
    backend: str
    compilation: Choice
    graph: str
    loss: Loss
    objective: Objective
    parallel: Parallel


def build_setup(
    config: Config,
    prepared: Prepared,
    runtime: Runtime,
    compilation: Choice | None = None,
    initial: Initial | None = None,
) -> Setup:
    """Seed torch, build model and optimizer, and resolve the config.

    `compilation`: of a sweep, whose runs must compute alike; None: chosen for this run. `initial`:
    the weights to start from. Raises UserError for a combination of choices that is not supported,
    and for weights that do not fit.
    """
    reset_peak_memory(runtime.device)
    torch.manual_seed(config.seed)
    data = prepared.tokens.to(runtime.device)
    generator = torch.Generator(data.train.tokens.device)
    generator.manual_seed(config.seed + BATCH_SEED)
    model = GPT(config.model, prepared.tokenizer.n_vocab)
    if initial is not None:
        initial.load_into(model)
    ADAPTERS.build(config.adapter).attach(model)
    model.to(runtime.device)
    parallel = PARALLEL[config.trainer.parallel](runtime.ranks, runtime.precision == "bf16")
    backend = model.use_backend(runtime.device, runtime.precision == "bf16", "training")
    decay = config.optimizer.ema
    average = None if decay is None else WeightAverage(model, decay)
    for each in (model, *([] if average is None else [average.model])):
        parallel.split(each)
    optimizer = OPTIMIZERS.build(config.optimizer, model)
    state = TrainState(model, optimizer, generator, average=average, parallel=parallel)
    if runtime.ranks.rank > 0:  # other dropout masks than in the first process
        torch.manual_seed(config.seed + RANK_SEED * runtime.ranks.rank)
    # Resolve `auto`, relative paths and nulls. model.backend.name=auto stays: the backend is chosen
    # separately for each use.
    device, precision, threads = runtime.device, runtime.precision, torch.get_num_threads()
    if config.teacher is not None:
        compilation = Choice(False, "the loss has a teacher")
    if config.trainer.parallel != "none":
        compilation = Choice(False, "a run on several processes is not compiled")
    chosen = compilation or choose_compilation([Planned(config, prepared.tokenizer.n_vocab)])
    trainer = replace(config.trainer, device=device, precision=precision, threads=threads)
    graph, why = choose_graph(trainer.graph, config.model, device, model.backend_name)
    trainer = replace(trainer, compile=chosen.compiled, graph=graph)
    if trainer.sample_prompt is None:
        trainer = replace(trainer, sample_prompt=escape(_default_prompt(prepared)))
    attention = model.attention.resolved(config.model.attention)
    design = replace(config.model, attention=attention)
    resolved = replace(config, trainer=trainer, data=config.data.absolute(), model=design)
    backends = (backend, chosen, f"{graph} ({why})")
    loss = training_loss(config.objective, model, prepared.tokenizer, runtime)
    loss = parallel.loss(model, loss)
    objective = OBJECTIVES.build(config.objective, prepared.tokenizer, config.model.block_size)
    parts = (*backends, loss, objective, parallel)
    return Setup(resolved, runtime, prepared.tokenizer, data, state, *parts)


def _default_prompt(prepared: Prepared) -> str:
    """Return a newline if the tokenizer has it, else the first character of the text."""
    tokenizer, first = prepared.tokenizer, prepared.tokens.train.tokens[:1].tolist()
    return "\n" if tokenizer.can_encode("\n") else tokenizer.decode(first)
