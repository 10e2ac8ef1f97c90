"""What this machine offers: versions, device, data, tokenizers and optional packages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minigpt.config.compose import composed_config
from minigpt.data.corpus import CORPORA
from minigpt.errors import UserError
from minigpt.logger.wandb_ import WandbConfig, why_not_online
from minigpt.model import GPT
from minigpt.run.provenance import PACKAGES, provenance
from minigpt.runtime import choose_runtime
from minigpt.tokenizer import TOKENIZERS


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy`: what to do if something is missing."""

    subject: str
    status: str
    remedy: str = ""


def findings() -> list[Finding]:
    """Return the state of everything that `minigpt doctor` reports."""
    required = [*_versions(), *_device(), *_data(), *_tokenizers()]
    return [*required, _wandb(), _tensorboard(), _torchao(), _ray()]


def _versions() -> list[Finding]:
    manifest = provenance([])
    versions = ", ".join(f"{name} {manifest['versions'][name]}" for name in PACKAGES)
    return [
        Finding("minigpt", f"{manifest['minigpt']}, commit {manifest['commit'] or 'unknown'}"),
        Finding("python", f"{manifest['python']} on {manifest['platform']}"),
        Finding("packages", versions),
    ]


def _device() -> list[Finding]:
    runtime = choose_runtime("auto", "auto")
    with torch.device("meta"):
        model = GPT(composed_config([]).model, n_vocab=1)
    backend = model.use_backend(runtime.device, runtime.precision == "bf16", "train")
    build = "with CUDA " + torch.version.cuda if torch.version.cuda else "without CUDA"
    remedy = ""
    if runtime.device == "cpu":
        remedy = "training runs on the CPU; if there is a GPU, install a torch build for it"
    return [
        Finding("device", f"{runtime.device}: {runtime.device_reason}; torch {build}", remedy),
        Finding("precision", f"{runtime.precision}: {runtime.precision_reason}"),
        Finding("attention", backend),
        Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()} (trainer.threads)"),
    ]


def _data() -> list[Finding]:
    results = []
    for name in ("tinyshakespeare", "shakespeare"):
        config = composed_config([f"data={name}"]).data
        try:
            corpus = CORPORA.build(config).corpus()
            size = sum(corpus.characters.values())
            results.append(Finding(f"data={name}", f"{size:,} characters, {corpus.sha256[:12]}"))
        except UserError as error:
            results.append(Finding(f"data={name}", "not available", str(error)))
    return results


def _tokenizers() -> list[Finding]:
    results = []
    sample = "To be, or not to be"
    for name in ("char", "gpt2", "bpe"):
        config = composed_config([f"tokenizer={name}"])
        create, subject = TOKENIZERS.variant(name).create, f"tokenizer={name}"
        try:
            with TemporaryDirectory() as scratch:  # a trained tokenizer; gpt2 may be in data.dir
                directory = Path(config.data.dir if name == "gpt2" else scratch)
                tokenizer = create(config.tokenizer, sample, len(sample), directory)
            results.append(
                Finding(subject, f"ready, {len(tokenizer.encode(sample))} tokens in a line")
            )
        except UserError as error:
            results.append(Finding(subject, "not available", str(error)))
    results.append(Finding("tokenizer=tiktoken", "downloads an encoding on first use"))
    return results


def _wandb() -> Finding:
    options = composed_config(["logger=wandb"]).logger
    assert isinstance(options, WandbConfig)
    reason = why_not_online(options)
    if reason is None:
        return Finding("logger=wandb", "online")
    remedy = "runs are stored offline; `wandb login`, then `wandb sync` their folders"
    return Finding("logger=wandb", f"offline: {reason}", remedy)


def _tensorboard() -> Finding:
    if find_spec("tensorboard"):
        return Finding("logger=tensorboard", "ready")
    return Finding("logger=tensorboard", "not installed (pip install 'minigpt[tensorboard]')")


def _torchao() -> Finding:
    try:
        return Finding("--quantize", f"ready, torchao {version('torchao')}")
    except PackageNotFoundError:
        return Finding("--quantize", "not installed (pip install 'minigpt[quantize]')")


def _ray() -> Finding:
    try:
        status = f"ready, ray {version('ray')} and optuna {version('optuna')}"
    except PackageNotFoundError:
        status = "not installed (pip install 'minigpt[ray]')"
    return Finding("minigpt tune", status)
