"""`trainer.compile`: whether training steps are compiled by torch.compile, and how.

Compiled code is cached in the data folder (TORCHINDUCTOR_CACHE_DIR, if set). A file per design
records that its code is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from minigpt.config.schema import Config
from minigpt.data import CORPORA, Batch
from minigpt.errors import first_line
from minigpt.files import sha256, write_json
from minigpt.model import GPT
from minigpt.model.attention import ATTENTION
from minigpt.run.directory import find_trained
from minigpt.run.load import tokenizer_of
from minigpt.run.provenance import code_sha256
from minigpt.runtime import Runtime, choose_runtime

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]

CACHE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_OF_USER = os.environ.get(CACHE)
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # Inductor's defaults; g++ elsewhere
FILL = "fill_uninitialized_memory"  # of torch's deterministic mode: costs time, changes nothing
# Runs that share the code of a process: fewer than torch.compile's recompile limit, because a run
# whose guards fail adds code.
RUNS_OF_CODE = 4
_code_in_process: tuple[Path | None, int] = (None, 0)  # its design, and the number of its runs


class Cost(NamedTuple):
    """Training FLOPs during which compiled steps save as much time as preparing them takes.

    `load`: code from the cache, for runs that share it, see RUNS_OF_CODE. `compile`: a new design.
    """

    load: float
    compile: float


# cpu: measured, see docs/performance.md. cuda: an estimate, not measured.
COSTS = {"cpu": Cost(load=2e12, compile=1.5e13), "cuda": Cost(load=5e14, compile=4e15)}


class Choice(NamedTuple):
    """Whether to compile, and the reason."""

    compiled: bool
    reason: str

    def describe(self) -> str:
        """Return the choice with its reason, in one line."""
        return f"{'compiled' if self.compiled else 'eager'} ({self.reason})"


class Planned(NamedTuple):
    """A run that is to be trained: its config and the size of its vocabulary."""

    config: Config
    n_vocab: int

    @property
    def flops(self) -> int:
        """FLOPs of all its training steps."""
        trainer, model = self.config.trainer, self.config.model
        with torch.device("meta"):
            gpt = GPT(model, self.n_vocab)
        flops_per_token = gpt.flops_per_token(trainer.micro_batch_size)
        return trainer.max_steps * trainer.batch_size * model.block_size * flops_per_token

    def cached(self, runtime: Runtime) -> Path:
        """Return the file that exists if the compiled code of this design is in the cache.

        It is the same for a config as requested and as resolved by `build_setup`.
        """
        trainer, separator = self.config.trainer, self.config.data.separator
        model = self.config.model
        with torch.device("meta"):
            attention = ATTENTION.build(model.attention, model.shape).resolved(model.attention)
        batch = (trainer.batch_size, trainer.grad_accum_steps, separator is not None)
        threads = trainer.threads or torch.get_num_threads()
        device = torch.cuda.get_device_name() if runtime.device == "cuda" else "cpu"
        processor = torch.backends.cpu.get_cpu_capability()
        machine = (device, runtime.precision, threads, processor, torch.__version__, code_sha256())
        design = repr((replace(model, attention=attention), self.n_vocab, batch, machine))
        return cache_folder(self.config) / "designs" / f"{sha256(design)[:16]}.json"


def vocabulary_size(config: Config) -> int:
    """Return the number of tokens of a config's tokenizer. Raises UserError without its text."""
    if config.init is not None:
        return tokenizer_of(find_trained(config.init, "init")).n_vocab
    corpus = CORPORA.build(config.data).corpus()
    return corpus.tokenizer(config.tokenizer, config.data.directory).n_vocab


def cache_folder(config: Config) -> Path:
    """Return the folder of compiled code."""
    return Path(CACHE_OF_USER or config.data.directory / "compiled").absolute()


def choose_compilation(planned: Sequence[Planned], processes: int | None = None) -> Choice:
    """Decide `trainer.compile=auto` for runs that must compute alike: one run, or a sweep.

    They are compiled if the compiled steps are expected to save more time than compiling takes,
    which depends on their FLOPs, not on a timing: see COSTS. `processes`: the number of processes
    that share the runs; None: one for each run.
    """
    first = planned[0].config.trainer
    if first.compile != "auto":
        return Choice(first.compile is True, "as configured")
    runtime = choose_runtime(first.device, first.precision)
    cost = COSTS.get(runtime.device)
    if cost is None:
        return Choice(False, f"trainer.compile=auto does not compile on {runtime.device}")
    files = [run.cached(runtime) for run in planned]
    new = sum(not file.exists() for file in set(files))
    flops = sum(run.flops for run in planned)
    if flops < _loads(files, processes or len(files)) * cost.load + new * cost.compile:
        steps = sum(run.config.trainer.max_steps for run in planned)
        return Choice(False, f"{steps:,} steps are too few to make up for compiling")
    missing = _missing_compiler(runtime.device)
    if missing is not None:
        return Choice(False, missing)
    return Choice(True, "not in the cache yet" if new else "in the cache")


def _loads(files: Sequence[Path], processes: int) -> int:
    """Return how often code is loaded for runs in this order: see `_keep_code_of`."""
    counts = [len(list(runs)) for _, runs in groupby(files)]
    return sum(max(min(n, processes), ceil(n / RUNS_OF_CODE)) for n in counts)


def _missing_compiler(device: str) -> str | None:
    """Return what torch.compile lacks on this machine, or None."""
    compiler = _compiler()
    if shutil.which(compiler) is None:
        return f"no C++ compiler {compiler}; with one, training is faster"
    if device == "cuda" and find_spec("triton") is None:
        return "no triton; with it, training is faster"
    return None


def _compiler() -> str:
    return os.environ.get("CXX", COMPILERS.get(sys.platform, "g++"))


def why_not_compiled(error: Exception, device: str) -> str:
    """Return in one line why torch.compile failed: what is missing here, or its own error."""
    broken = "InvalidCxxCompiler" in str(error)
    its_own = f"the C++ compiler {_compiler()} does not work" if broken else first_line(error)
    return _missing_compiler(device) or its_own


def compiled_loss(model: GPT, batch: Batch, runtime: Runtime, cached: Path) -> Loss:
    """Return `model.training_loss`, compiled, with forward and backward code for such a batch.

    The state of the random generators and the gradients do not change. One process at a time
    compiles a design, and others read its code from the cache. `cached`: see `Planned.cached`.
    It must be called, with its backward pass, in `reproducible_code`. Raises the errors of
    torch.compile.
    """
    os.environ[CACHE] = str(cached.parent.parent)
    _keep_code_of(cached)
    # Several graphs only where the backend is not compiled: others would recompile in each step.
    one_graph = model.backend_name != "blockwise"
    loss = torch.compile(model.training_loss, fullgraph=one_graph, dynamic=False)
    gpus = [torch.cuda.current_device()] if runtime.device == "cuda" else []
    with _compiling(cached), torch.random.fork_rng(gpus), reproducible_code(runtime.device):
        with runtime.autocast():
            value, _ = loss(*batch.tensors)
        value.backward()
    model.zero_grad()
    return loss


def _keep_code_of(cached: Path) -> None:
    """Remove the compiled code of this process, unless it is that of the same design.

    Another run of the design, such as the next seed of a sweep, then starts at once. See
    RUNS_OF_CODE.
    """
    global _code_in_process  # as torch.compile's own state
    design, runs = _code_in_process
    if cached != design or runs == RUNS_OF_CODE:
        torch.compiler.reset()
        runs = 0
    _code_in_process = (cached, runs + 1)


@contextmanager
def reproducible_code(device: str) -> Iterator[None]:
    """On a CPU, compile and run code whose sums have a fixed order, as those of eager training.

    Otherwise the gradient of an embedding is a sum in the order in which threads come.
    """
    if device != "cpu":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = getattr(torch.utils.deterministic, FILL)
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, FILL, False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        setattr(torch.utils.deterministic, FILL, fill)


@contextmanager
def _compiling(cached: Path) -> Iterator[None]:
    """Hold the design's lock unless its code is in the cache; write its file at the end."""
    if cached.exists():
        yield
        return
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):
        yield
        write_json(cached, {})
