"""A trained run, read back."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.config import Config, load_config
from minigpt.files import readable_directory
from minigpt.model import GPT
from minigpt.run import RunDirectory, find_run
from minigpt.tokenizer import Tokenizer, load_tokenizer
from minigpt.train.device import Compute, choose_compute
from minigpt.train.state import load_weights


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in evaluation mode, with what is needed to use it."""

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: GPT
    compute: Compute
    checkpoint: str


def load_run(name: str, checkpoint: str | None, device: str) -> TrainedRun:
    """Load a run by path or `latest`; `checkpoint` is best, last, or None: the best there is.

    On the kind of device the run was trained on it computes in the same precision, so that numbers
    agree with those of training. Raises UserError where something is missing, damaged or foreign.
    """
    run = find_run(name)
    config = load_config(run.config)
    tokenizer = load_tokenizer(run.tokenizer)
    compute = choose_compute(device, "auto", key="--device")
    if compute.device == config.trainer.device:
        compute = choose_compute(device, config.trainer.precision, key="--device")
    if checkpoint is None:
        checkpoint = "best" if readable_directory(run.best).exists() else "last"
    model = GPT(config.model, tokenizer.n_vocab)
    load_weights(run.best if checkpoint == "best" else run.last, model)
    model.to(compute.device).eval()
    model.use_backend(compute.device, compute.precision == "bf16")
    return TrainedRun(run, config, tokenizer, model, compute, checkpoint)
