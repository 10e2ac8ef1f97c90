"""Inspect this machine: versions, device, data, tokenizers and optional packages."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from minigpt.config.compose import composed_config
from minigpt.data.corpus import CORPORA
from minigpt.errors import UserError
from minigpt.extras import install
from minigpt.logger.wandb_ import WandbConfig
from minigpt.logger.wandb_checks import why_not_online
from minigpt.model import GPT
from minigpt.run.provenance import PACKAGES, provenance
from minigpt.runtime import choose_runtime
from minigpt.tokenizer import TOKENIZERS


class Finding(NamedTuple):
    """One line of `minigpt doctor`. `remedy`: how to install a missing part."""

    subject: str
    status: str
    remedy: str = ""


def findings() -> list[Finding]:
    """Return the state of everything that `minigpt doctor` reports."""
    return [
        *_versions(),
        *_device(),
        *(_available(f"data={name}", _corpus, name) for name in ("tinyshakespeare", "shakespeare")),
        *(_available(f"tokenizer={name}", _tokenizer, name) for name in ("char", "gpt2", "bpe")),
        Finding("tokenizer=tiktoken", "downloads an encoding on first use"),
        _wandb(),
        _installed("logger=tensorboard", "tensorboard", "tensorboard"),
        _installed("--quantize", "quantize", "torchao"),
        _installed("minigpt tune", "ray", "ray", "optuna"),
    ]


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
    backend = model.use_backend(runtime.device, runtime.precision == "bf16", "training")
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


def _available(subject: str, status: Callable[[str], str], name: str) -> Finding:
    try:
        return Finding(subject, status(name))
    except UserError as error:
        return Finding(subject, "not available", str(error))


def _corpus(name: str) -> str:
    corpus = CORPORA.build(composed_config([f"data={name}"]).data).corpus()
    return f"{sum(corpus.characters.values()):,} characters, {corpus.sha256[:12]}"


def _tokenizer(name: str) -> str:
    config, line = composed_config([f"tokenizer={name}"]), "To be, or not to be"
    with TemporaryDirectory() as scratch:  # of a trained tokenizer; gpt2 may be in data.dir
        directory = config.data.directory if name == "gpt2" else Path(scratch)
        create = TOKENIZERS.variant(name).create
        tokenizer = create(config.tokenizer, line, len(line), directory)
    return f"ready, {len(tokenizer.encode(line))} tokens in a line"


def _wandb() -> Finding:
    options = composed_config(["logger=wandb"]).logger
    assert isinstance(options, WandbConfig)
    reason = why_not_online(options.timeout_seconds)
    if reason is None:
        return Finding("logger=wandb", "online")
    remedy = "runs are stored offline; `wandb login`, then `wandb sync` their folders"
    return Finding("logger=wandb", f"offline: {reason}", remedy)


def _installed(subject: str, extra: str, *packages: str) -> Finding:
    try:
        versions = " and ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError:
        return Finding(subject, f"not installed ({install(extra)})")
    return Finding(subject, f"ready, {versions}")
