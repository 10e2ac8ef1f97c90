"""`minigpt data`: prepare a corpus and show what each tokenizer makes of it."""

from __future__ import annotations

from minigpt.commands.options import Parser

OFFLINE = ("char", "gpt2", "bpe")  # shown where no tokenizer is chosen


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
        ],
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    overrides = parser.parse_args(arguments).overrides

    import torch
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Table

    from minigpt.config import composed_config
    from minigpt.data.prepare import prepare
    from minigpt.display import PipeConsole

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
            total_bytes = len(prepared.corpus.text.encode("utf-8"))
            rows.add_row(
                name,
                f"{prepared.tokenizer.n_vocab:,}",
                f"{len(train.tokens):,}",
                f"{len(val.tokens):,}",
                f"{total_bytes / (len(train.tokens) + len(val.tokens)):.3f}",
                prepared.tokenizer.fingerprint[:12],
            )
            lengths = torch.cat((train.document_lengths, val.document_lengths))
            sizes = (len(train.document_lengths), len(val.document_lengths))
            documents.add_row(name, *(f"{n:,}" for n in (*sizes, lengths.median(), lengths.max())))
    assert prepared is not None
    corpus = Table("corpus", "bytes", "characters", "train", "val")
    corpus.add_row(
        configs[0].data.name,
        f"{len(prepared.corpus.text.encode('utf-8')):,}",
        f"{len(prepared.corpus.text):,}",
        *(f"{len(text):,}" for text in prepared.corpus.splits.values()),
    )
    console.print(corpus)
    console.print(f"sha256 {prepared.corpus.sha256}", soft_wrap=True)
    console.print(rows)
    if configs[0].data.separator is not None:
        console.print(documents)
    console.print(f"kept in {configs[0].data.dir}/")
