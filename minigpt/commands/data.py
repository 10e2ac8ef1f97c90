"""`minigpt data`: prepare a corpus and compare the tokenizers on it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.commands.options import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from minigpt.config.schema import Config
    from minigpt.data.prepare import Prepared

OFFLINE = ("char", "gpt2", "bpe")  # compared if no tokenizer is chosen
SHARDS = "write the tokens to shards in FOLDER, for training with data=shards"
OF_SHARDS = ("tokenizer", "data.train_fraction=", "data.document_separator=")


def main(arguments: list[str]) -> None:
    """Prepare the text and its tokens, and print their sizes."""
    parser = Parser(
        "data",
        "Prepare a corpus, and show its size and its number of tokens by tokenizer.\n"
        "Takes the overrides of minigpt train; the prepared tokens are cached in data.dir.",
        [
            "minigpt data",
            "minigpt data data=shakespeare tokenizer=bpe tokenizer.vocab_size=4096",
            "minigpt data data=text data.path='my/*.txt'",
            r"minigpt data data.document_separator='\n\n'",
            "minigpt data --shards big data=text data.path='big/*.txt' tokenizer=gpt2",
        ],
    )
    parser.add_overrides()
    parser.add_options({"--shards FOLDER": SHARDS}, shards=Path)
    options = parser.parse(arguments)
    if options.shards is not None:
        _write_shards(options.shards, options.overrides)
        return

    from minigpt.config.compose import composed_config
    from minigpt.console import PipeConsole

    overrides = options.overrides
    chosen = any(override.startswith("tokenizer") for override in overrides)
    choices = [overrides] if chosen else [[*overrides, f"tokenizer={name}"] for name in OFFLINE]
    configs = [composed_config(choice) for choice in choices]
    console = PipeConsole(highlight=False)
    _print_sizes(configs, _prepare(configs), console)


def _prepare(configs: list[Config]) -> list[Prepared]:
    from minigpt.console import Progress
    from minigpt.data.prepare import prepare

    prepared = []
    with Progress("preparing", total=len(configs)) as progress:
        for config in progress.counted(configs):
            progress.activity = f"{config.data.name} as {config.tokenizer.name} tokens"
            prepared.append(prepare(config.data, config.tokenizer))
    return prepared


def _print_sizes(configs: list[Config], prepared: list[Prepared], console: Console) -> None:
    import torch
    from rich.table import Table

    names = [split.name for split in prepared[0].tokens.splits]
    columns = [f"{name} tokens" for name in names]
    sizes = Table("tokenizer", "vocabulary", *columns, "bytes/token", "sha256")
    columns = [f"{name} documents" for name in names]
    documents = Table("tokenizer", *columns, "median tokens", "longest")
    for config, data in zip(configs, prepared, strict=True):
        name, n_tokens = config.tokenizer.name, [len(split.tokens) for split in data.tokens.splits]
        counts = (data.tokenizer.n_vocab, *n_tokens)
        n_bytes = sum(split.target_bytes for split in data.tokens.splits)
        bytes_per_token = n_bytes / (sum(n_tokens) - len(names))  # first tokens are no targets
        fingerprint = data.tokenizer.fingerprint[:12]
        sizes.add_row(name, *(f"{n:,}" for n in counts), f"{bytes_per_token:.3f}", fingerprint)
        by_split = [split.document_lengths for split in data.tokens.splits]
        lengths = torch.cat(by_split)
        statistics = (*map(len, by_split), lengths.median(), lengths.max())
        documents.add_row(name, *(f"{n:,}" for n in statistics))
    corpus, data_config = prepared[0].corpus, configs[0].data
    characters = corpus.characters.values()
    counts = (corpus.n_bytes, sum(characters), *characters)
    table = Table("corpus", "bytes", "characters", *names)
    table.add_row(data_config.name, *(f"{n:,}" for n in counts))
    console.print(table)
    console.print(f"sha256 {corpus.sha256}", soft_wrap=True)
    if corpus.left_out is not None:
        console.print(corpus.left_out, soft_wrap=True, markup=False)
    console.print(sizes)
    if data_config.separator is not None:
        console.print(documents)
    console.print(f"cached in {data_config.directory}/")


def _write_shards(folder: Path, overrides: list[str]) -> None:
    """Write the tokens of a text to a folder, and print the command that trains with them."""
    from minigpt.config.compose import composed_config
    from minigpt.console import PipeConsole, Progress
    from minigpt.data import CORPORA
    from minigpt.data.shards import write_shards

    config = composed_config(overrides)
    source = CORPORA.build(config.data)
    console = PipeConsole(highlight=False)
    with Progress("reading") as progress:

        def show(phase: str, n: int, total: int | None) -> None:
            if total != progress.total:
                progress.begin(phase, total)
            progress.activity, progress.done = f"{phase}, {n:,} characters", n

        index = write_shards(source, config.tokenizer, folder, show)
    for name, split in index.splits.items():
        counts = f"{sum(split['shards'].values()):,} tokens in {len(split['shards'])} files"
        console.print(f"{name}: {counts}, of {index.characters[name]:,} characters")
    console.print(f"sha256 {index.sha256}", soft_wrap=True)
    if source.left_out is not None:
        console.print(source.left_out, soft_wrap=True, markup=False)
    options = [override for override in overrides if override.startswith(OF_SHARDS)]
    command = shlex.join(["minigpt", "train", "data=shards", f"data.path={folder}", *options])
    console.print(f"train with them: {command}", soft_wrap=True, markup=False)
