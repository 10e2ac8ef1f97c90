"""Inspect this machine: versions, device, data, tokenizers and optional packages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from minigpt.config.compose import composed_config
from minigpt.data.corpus import CORPORA
from minigpt.data.shakespeare import PACKAGE
from minigpt.errors import UserError, first_line
from minigpt.extras import install, install_packages
from minigpt.logger.wandb_ import WandbConfig
from minigpt.logger.wandb_checks import why_not_online
from minigpt.model import GPT
from minigpt.run.provenance import PACKAGES, provenance
from minigpt.runtime import Runtime, choose_runtime
from minigpt.tokenizer import TOKENIZERS
from minigpt.tokenizer.tiktoken_ import GPT2_PACKAGE

# Packages that carry the text and GPT-2's vocabulary; without its others minigpt does not start.
REQUIRED = (PACKAGE, GPT2_PACKAGE)
# Optional parts, with the extra that installs each and the packages that it needs.
OPTIONAL = {
    "minigpt tune": ("ray", ("ray", "optuna")),
    "--quantize": ("quantize", ("torchao",)),
    "minigpt export --to hf": ("hf", ("transformers",)),
    "minigpt export --to gguf": ("gguf", ("gguf",)),
    "minigpt export --to onnx": ("onnx", ("onnxscript", "onnxruntime")),
    "logger=tensorboard": ("tensorboard", ("tensorboard",)),
    "minigpt.runs": ("pandas", ("pandas",)),
    "minigpt report --wandb": ("workspaces", ("wandb-workspaces",)),
    "hydra/launcher=ray": ("ray", ("hydra-ray-launcher",)),
    "hydra/launcher=submitit_slurm": ("slurm", ("hydra-submitit-launcher",)),
}


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
        *(_optional(subject, *parts) for subject, parts in OPTIONAL.items()),
    ]


def verdict() -> list[Finding]:
    """Return what works, what is missing and how to get it, without network and without Hydra."""
    runtime = choose_runtime("auto", "auto")
    fault = _fault(runtime)
    without = [name for name in REQUIRED if not _versions_of([name])]
    missing = {
        subject: extra
        for subject, (extra, packages) in OPTIONAL.items()
        if not _versions_of(packages)
    }
    commands = [install_packages(*without)] if without else []
    commands += [install(*dict.fromkeys(missing.values()))] if missing else []
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads"
    works = "yes: train, evaluate and sample; no download is needed"
    if fault is not None or without:
        works = f"no: {fault or 'packages with text and vocabulary are not installed'}"
    return [
        Finding("works", works),
        Finding("device", f"{runtime.device}, {runtime.precision}, {threads}"),
        Finding("missing", ", ".join([*without, *missing]) or "nothing"),
        Finding("get it", " && ".join(commands) or "nothing to install"),
        Finding("more", "minigpt doctor --table positional | attention: what can be combined"),
    ]


def _fault(runtime: Runtime) -> str | None:
    """Return why the device does not compute, or None if it does."""
    try:
        with runtime.autocast():
            ones = torch.ones(2, 2, device=runtime.device)
            (ones @ ones).sum().item()
    except RuntimeError as error:  # such as a GPU that this build of torch has no kernels for
        return f"{runtime.device} does not compute: {first_line(error)}"
    return None


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
        model = GPT(composed_config([]).model, n_ordinary=1)
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


def _optional(subject: str, extra: str, packages: Sequence[str]) -> Finding:
    versions = _versions_of(packages)
    if not versions:
        return Finding(subject, "not installed", install(extra))
    return Finding(subject, f"ready, {' and '.join(versions)}")


def _versions_of(packages: Sequence[str]) -> list[str]:
    """Return packages with their versions, or nothing if one is missing."""
    try:
        return [f"{package} {version(package)}" for package in packages]
    except PackageNotFoundError:
        return []
