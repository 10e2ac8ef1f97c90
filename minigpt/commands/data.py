"""`minigpt data`: prepare a corpus and show what each tokenizer makes of it."""

from __future__ import annotations

import shlex
from pathlib import Path

from minigpt.commands.options import Parser

OFFLINE = ("char", "gpt2", "bpe")  # shown where no tokenizer is chosen
MADE_WITH = ("tokenizer", "data.train_fraction=", "data.document_separator=")


def main(arguments: list[str]) -> None:
    """Prepare the text and the tokens of every tokenizer that can be had, and print a table."""
    parser = Parser(
        "data",
        "Prepare a corpus, and show its size and what each tokenizer makes of it.\n"
        "Takes the overrides of minigpt train; what is prepared is kept in data.dir.",
        [
            "minigpt data",
            "minigpt data data=shakespeare tokenizer=bpe tokenizer.vocab_size=4096",
            "minigpt data data=text data.path='my/*.txt'",
            r"minigpt data data.document_separator='\n\n'",
            "minigpt data --shards big data=text data.path='big/*.txt' tokenizer=gpt2",
        ],
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--shards",
        type=Path,
        metavar="FOLDER",
        help="write the tokens of one tokenizer there, piece by piece, for data=shards",
    )
    options = parser.parse_intermixed_args(arguments)
    overrides = options.overrides
    if options.shards is not None:
        _write_shards(options.shards, overrides)
        return

    import torch
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Table

    from minigpt.config.compose import composed_config
    from minigpt.console import PipeConsole
    from minigpt.data.prepare import prepare

    chosen = any(override.startswith("tokenizer") for override in overrides)
    choices = [overrides] if chosen else [[*overrides, f"tokenizer={name}"] for name in OFFLINE]
    configs = [composed_config(choice) for choice in choices]
    console = PipeConsole(highlight=False)
    rows = Table("tokenizer", "vocabulary", "train tokens", "val tokens", "bytes/token", "sha256")
    documents = Table("tokenizer", "train documents", "val", "median tokens", "longest")
    with Progress(
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(configs))
        prepared = None
        for config in configs:
            name = config.tokenizer.name
            progress.update(task, description=f"{config.data.name} as {name} tokens")
            prepared = prepare(config.data, config.tokenizer)
            train, val = prepared.tokens.train, prepared.tokens.val
            progress.advance(task)
            rows.add_row(
                name,
                f"{prepared.tokenizer.n_vocab:,}",
                f"{len(train.tokens):,}",
                f"{len(val.tokens):,}",
                f"{prepared.corpus.n_bytes / (len(train.tokens) + len(val.tokens)):.3f}",
                prepared.tokenizer.fingerprint[:12],
            )
            lengths = torch.cat((train.document_lengths, val.document_lengths))
            sizes = (len(train.document_lengths), len(val.document_lengths))
            documents.add_row(name, *(f"{n:,}" for n in (*sizes, lengths.median(), lengths.max())))
    assert prepared is not None
    corpus = Table("corpus", "bytes", "characters", "train", "val")
    corpus.add_row(
        configs[0].data.name,
        f"{prepared.corpus.n_bytes:,}",
        f"{sum(prepared.corpus.characters.values()):,}",
        *(f"{n:,}" for n in prepared.corpus.characters.values()),
    )
    console.print(corpus)
    console.print(f"sha256 {prepared.corpus.sha256}", soft_wrap=True)
    console.print(rows)
    if configs[0].data.separator is not None:
        console.print(documents)
    console.print(f"kept in {configs[0].data.dir}/")


def _write_shards(folder: Path, overrides: list[str]) -> None:
    """Write a text's tokens to a folder, and say how many there are and how to use them."""
    from minigpt.config.compose import composed_config
    from minigpt.console import PipeConsole
    from minigpt.data.shards import write_shards

    config = composed_config(overrides)
    console = PipeConsole(highlight=False)
    folder = folder.expanduser()
    with console.status("reading ...") as status:
        index = write_shards(
            config.data,
            config.tokenizer,
            folder,
            lambda doing, n: status.update(f"{doing} ... {n:,} characters"),
        )
    for name, split in index.splits.items():
        counts = f"{sum(split['shards'].values()):,} tokens in {len(split['shards'])} files"
        console.print(f"{name}: {counts}, of {index.characters[name]:,} characters")
    console.print(f"sha256 {index.sha256}", soft_wrap=True)
    again = [override for override in overrides if override.startswith(MADE_WITH)]
    use = shlex.join(["minigpt", "train", "data=shards", f"data.path={folder}", *again])
    console.print(f"train with them: {use}", soft_wrap=True, markup=False)
