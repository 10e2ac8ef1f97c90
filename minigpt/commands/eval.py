"""`minigpt eval`: a trained run on its whole text."""

from __future__ import annotations

from minigpt.commands.options import Parser, add_run_arguments


def main(arguments: list[str]) -> None:
    """Print loss, perplexity and bits per byte of both splits, and write them to eval.json."""
    parser = Parser(
        "eval",
        "Measure a trained run: one full pass over each split, in windows that do not overlap.",
        ["minigpt eval latest", "minigpt eval runs/NAME --checkpoint last"],
    )
    add_run_arguments(parser)
    options = parser.parse_args(arguments)

    from rich.table import Table

    from minigpt.data.prepare import prepare
    from minigpt.display import PipeConsole
    from minigpt.evaluate import evaluate
    from minigpt.files import write_json
    from minigpt.load import load_run

    trained = load_run(options.run, options.checkpoint, options.device)
    prepared = prepare(trained.config.data, trained.config.tokenizer, of_run=trained.run)
    console = PipeConsole(highlight=False)
    table = Table("split", "tokens", "loss", "perplexity", "bits per byte")
    numbers: dict[str, float | str | int] = {"checkpoint": trained.checkpoint}
    with console.status("evaluating ..."):
        for split in (prepared.tokens.train, prepared.tokens.val):
            result = evaluate(trained.model, split.to(trained.compute.device), trained.compute)
            numbers |= result.metrics(split.name)
            table.add_row(
                split.name,
                f"{len(split.tokens):,}",
                f"{result.loss:.4f}",
                f"{result.perplexity:.3f}",
                f"{result.bits_per_byte:.4f}",
            )
    console.print(f"{trained.run.path} ({trained.checkpoint}), {trained.compute.describe()}")
    console.print(table)
    path = trained.run.path / "eval.json"
    write_json(path, numbers)
    console.print(f"written to {path}", soft_wrap=True)
