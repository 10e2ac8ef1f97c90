"""`minigpt doctor`: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigpt.commands.options import Parser


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` says what to do where something is missing."""

    subject: str
    found: str
    remedy: str = ""


def main(arguments: list[str]) -> None:
    """Print what is here, each with a remedy where one is due, and what each backend can do."""
    Parser(
        "doctor",
        "Show versions, device, precision, data and tokenizers to be had offline, W&B's mode, and\n"
        "which attention backend trains and decodes which positional scheme on which device.",
        ["minigpt doctor"],
    ).parse_args(arguments)

    from rich.table import Table
    from rich.text import Text

    from minigpt.console import PipeConsole

    console = PipeConsole(highlight=False)
    with console.status("looking around ..."):
        findings = [*_versions(), *_device(), *_data(), *_tokenizers(), _wandb()]
        findings += [_tensorboard(), _torchao(), _ray()]
        capabilities = _capabilities()
    table = Table("subject", "found", show_edge=False)
    for finding in findings:
        table.add_row(finding.subject, Text(finding.found))
    console.print(table)
    problems = [finding for finding in findings if finding.remedy]
    for finding in problems:
        console.print(f"- {finding.subject}: {finding.remedy}", markup=False)
    if not problems:
        console.print("nothing is missing")
    console.print()
    for renderable in capabilities:
        console.print(renderable, markup=False)


def _versions() -> list[Finding]:
    from minigpt.run.provenance import PACKAGES, provenance

    manifest = provenance([])
    versions = ", ".join(f"{name} {manifest['versions'][name]}" for name in PACKAGES)
    return [
        Finding("minigpt", f"{manifest['minigpt']}, commit {manifest['commit'] or 'unknown'}"),
        Finding("python", f"{manifest['python']} on {manifest['platform']}"),
        Finding("packages", versions),
    ]


def _device() -> list[Finding]:
    import os

    import torch

    from minigpt.config.compose import composed_config
    from minigpt.model.compatibility import choose_backend
    from minigpt.runtime import choose_runtime

    runtime = choose_runtime("auto", "auto")
    model, bf16 = composed_config([]).model, runtime.precision == "bf16"
    backend = "{} ({})".format(*choose_backend(model, runtime.device, bf16, "train"))
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
    from minigpt.config.compose import composed_config
    from minigpt.data.corpus import CORPORA
    from minigpt.errors import UserError

    findings = []
    for name in ("tinyshakespeare", "shakespeare"):
        config = composed_config([f"data={name}"]).data
        try:
            corpus = CORPORA.build(config).corpus()
            size = sum(corpus.characters.values())
            findings.append(Finding(f"data={name}", f"{size:,} characters, {corpus.sha256[:12]}"))
        except UserError as error:
            findings.append(Finding(f"data={name}", "cannot be had", str(error)))
    return findings


def _tokenizers() -> list[Finding]:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from minigpt.config.compose import composed_config
    from minigpt.errors import UserError
    from minigpt.tokenizer import TOKENIZERS

    findings = []
    sample = "To be, or not to be"
    for name in ("char", "gpt2", "bpe"):
        config = composed_config([f"tokenizer={name}"])
        create, subject = TOKENIZERS.variant(name).create, f"tokenizer={name}"
        try:
            with TemporaryDirectory() as scratch:  # for what is learned; gpt2 may lie in data.dir
                directory = Path(config.data.dir if name == "gpt2" else scratch)
                tokenizer = create(config.tokenizer, sample, len(sample), directory)
            findings.append(
                Finding(subject, f"ready, {len(tokenizer.encode(sample))} tokens in a line")
            )
        except UserError as error:
            findings.append(Finding(subject, "cannot be had", str(error)))
    findings.append(Finding("tokenizer=tiktoken", "downloads an encoding at its first use"))
    return findings


def _wandb() -> Finding:
    from minigpt.config.compose import composed_config
    from minigpt.logger.wandb_ import WandbConfig, why_not_online

    options = composed_config(["logger=wandb"]).logger
    assert isinstance(options, WandbConfig)
    why = why_not_online(options)
    if why is None:
        return Finding("logger=wandb", "online")
    remedy = "runs are kept offline; `wandb login`, and `wandb sync` what is there, to see them"
    return Finding("logger=wandb", f"offline: {why}", remedy)


def _tensorboard() -> Finding:
    from importlib.util import find_spec

    if find_spec("tensorboard"):
        return Finding("logger=tensorboard", "ready")
    return Finding("logger=tensorboard", "not installed (pip install 'minigpt[tensorboard]')")


def _torchao() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("--quantize", f"ready, torchao {version('torchao')}")
    except PackageNotFoundError:
        return Finding("--quantize", "not installed (pip install 'minigpt[quantize]')")


def _ray() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = f"ready, ray {version('ray')} and optuna {version('optuna')}"
    except PackageNotFoundError:
        found = "not installed (pip install 'minigpt[ray]')"
    return Finding("minigpt tune", found)


class Reasons:
    """Reasons for a no, numbered from 1 in the order they came up."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def number(self, why: str) -> str:
        """The number of a reason."""
        if why not in self.found:
            self.found.append(why)
        return str(self.found.index(why) + 1)

    def lines(self) -> list[str]:
        """What the numbers mean."""
        return [f"{number} {why}" for number, why in enumerate(self.found, 1)]


def _capabilities() -> list[Any]:
    """Tables of what goes with what, and the reason for each no.

    For the default design; a soft-cap, dropout or small heads may rule out more, and training says
    so before it starts.
    """
    from dataclasses import replace

    from minigpt.config.compose import composed_config
    from minigpt.model import ModelConfig
    from minigpt.model.attention import ATTENTION
    from minigpt.model.backends import BACKENDS
    from minigpt.model.compatibility import USES, backend_limit, problems
    from minigpt.model.ffn import FFN
    from minigpt.model.norm import PLACEMENTS
    from minigpt.model.positional import POSITIONAL

    of_backends, of_attentions = Reasons(), Reasons()

    def able(backend: str, device: str, config: ModelConfig) -> str:
        limits = {use: backend_limit(config, backend, device, use) for use in USES}
        return " ".join(
            use[0] if limit is None else of_backends.number(limit) for use, limit in limits.items()
        )

    def compatible(config: ModelConfig, documents: bool = False) -> str:
        every = problems(config, documents=documents)
        return of_attentions.number(str(every[0])) if every else "yes"

    devices = ("cpu", "cuda", "mps")
    backends = {f"{b} {device}": (b, device) for b in BACKENDS for device in devices}
    by_backend = _table(
        "attention backends: t trains, d decodes, a number is the reason for a no",
        *("positional", *backends),
    )
    for name in POSITIONAL.names():
        model = composed_config([f"positional={name}"]).model
        by_backend.add_row(name, *(able(*where, model) for where in backends.values()))
    by_core = _table("the same by attention", "attention", *backends)
    attentions = {name: composed_config([f"attention={name}"]).model for name in ATTENTION.names()}
    for name, config in attentions.items():
        by_core.add_row(name, *(able(*where, config) for where in backends.values()))
    by_attention = _table(
        "what goes with which attention", "choice", *(n.replace("_", "_\n") for n in attentions)
    )
    others = {"positional": POSITIONAL.names(), "ffn": FFN.names(), "norm": [*PLACEMENTS]}
    for choice in (f"{group}={name}" for group, names in others.items() for name in names):
        design = composed_config([choice]).model
        designs = [replace(design, attention=of.attention) for of in attentions.values()]
        by_attention.add_row(choice, *map(compatible, designs))
    with_documents = (compatible(config, documents=True) for config in attentions.values())
    by_attention.add_row("data.document_separator", *with_documents)
    by_backends = [by_backend, "", by_core, *of_backends.lines()]
    return [*by_backends, "", by_attention, *of_attentions.lines()]


def _table(title: str, first: str, *columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    return Table(
        *(Column(first, no_wrap=True), *columns),
        title=title,
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
