"""`minigpt tune`: search for the best config with many runs, most of them stopped early."""

from __future__ import annotations

from minigpt.commands.options import Parser, path_option
from minigpt.errors import UserError
from minigpt.tune.options import (
    DEFAULT_POPULATION,
    DEFAULT_TRIALS,
    METRICS,
    SAMPLERS,
    SCHEDULERS,
    TuneOptions,
    require_ray,
)

HELP = {
    "--trials": f"number of trials (default: {DEFAULT_TRIALS}, of a population "
    f"{DEFAULT_POPULATION}; --search grid: every combination)",
    "--scheduler": "early stopping: asynchronous successive halving (asha, the default), "
    "hyperband, population based training of optimizer.* (pbt), or none",
    "--search": "how values are proposed: Bayesian optimisation (tpe, the default), random or grid",
    "--jobs": "concurrent trials (default: one per GPU, without GPUs one per core; a whole "
    "population); cores are divided among them",
    "--dir": "the search's folder, new or to resume; for several machines on a shared file system",
    "--address": "a Ray cluster's address, or auto (default: Ray on this machine alone)",
    "--seed": "seed of the search (default: 0); trials use the override seed=N",
}


def main(arguments: list[str]) -> None:
    """Check the options, and start or resume the search."""
    given = _parser().parse(arguments)
    for override in given.overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: cannot be parsed; write key=value or key=value,value")
    options = TuneOptions(**{k: v for k, v in vars(given).items() if k != "overrides"})
    require_ray("minigpt tune")

    from minigpt.tune.search import search

    search(given.overrides, options)


def _parser() -> Parser:
    parser = Parser(
        "tune",
        "Search for the config with the lowest validation loss. Overrides with several values are\n"
        "searched; all others apply to every trial. Each trial is a run in the search's folder,\n"
        "and the best config is saved there as best.yaml. The same command with --dir resumes a\n"
        "search that was stopped or killed.",
        [
            "minigpt tune optimizer.lr='tag(log,interval(1e-4,1e-2))' model=rope,alibi",
            "minigpt tune model.n_embd='int(interval(32,256))' trainer.max_steps=500 --trials 50",
            "minigpt tune optimizer.lr='interval(1e-3,1e-2)' --scheduler pbt --trials 8",
            "minigpt tune norm=pre,post ffn=gelu,swiglu --search grid --scheduler none",
            "minigpt tune optimizer.lr=1e-3,4e-3 data.fraction=0.25 trainer.max_steps=500",
            "minigpt tune optimizer.lr=1e-3,4e-3 --address auto --dir /shared/runs/lr",
        ],
    )
    add = parser.add_argument
    parser.add_overrides()
    add("--trials", type=int, metavar="N", help=HELP["--trials"])
    add("--scheduler", choices=SCHEDULERS, default="asha", help=HELP["--scheduler"])
    add("--search", choices=SAMPLERS, dest="sampler", help=HELP["--search"])
    add("--metric", choices=METRICS, default="val_loss", help="the metric to minimise")
    add("--jobs", type=int, metavar="N", help=HELP["--jobs"])
    add("--dir", type=path_option, metavar="DIR", dest="directory", help=HELP["--dir"])
    add("--address", metavar="RAY", help=HELP["--address"])
    add("--seed", type=int, default=0, metavar="N", help=HELP["--seed"])
    return parser
