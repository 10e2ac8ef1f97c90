"""`minigpt tune`: search for the best config with many runs, most of which end early."""

from __future__ import annotations

from pathlib import Path

from minigpt.commands.options import Parser
from minigpt.errors import UserError
from minigpt.tune.options import (
    DEFAULT_POPULATION,
    DEFAULT_TRIALS,
    METRICS,
    SAMPLERS,
    SCHEDULERS,
    TuneOptions,
)

INSTALL = "pip install -c constraints.txt -e '.[ray]'"


def main(arguments: list[str]) -> None:
    """Read the space and the options, check all of it, and search."""
    parser = Parser(
        "tune",
        "Search for the config with the least validation loss. What is searched is given as\n"
        "overrides with several values; all other overrides hold for every trial. Each trial is\n"
        "a run of its own in the search's folder, and the best config is left there as best.yaml.\n"
        "The same command with --dir goes on with a search that was stopped or killed.",
        [
            "minigpt tune optimizer.lr='tag(log,interval(1e-4,1e-2))' model=rope,alibi",
            "minigpt tune model.n_embd='int(interval(32,256))' trainer.max_steps=500 --trials 50",
            "minigpt tune optimizer.lr='interval(1e-3,1e-2)' --scheduler pbt --trials 8",
            "minigpt tune norm=pre,post ffn=gelu,swiglu --search grid --scheduler none",
            "minigpt tune optimizer.lr=1e-3,4e-3 --address auto --dir /shared/runs/lr",
        ],
    )
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of minigpt train")
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help=f"how many (default: {DEFAULT_TRIALS}, of a population {DEFAULT_POPULATION}; "
        "--search grid: every combination)",
    )
    parser.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        default="asha",
        help="what ends trials early: successive halving at once or in rounds (asha, hyperband), "
        "copying of better trials with other optimizer.* (pbt), nothing (none); default: asha",
    )
    parser.add_argument(
        "--search",
        choices=SAMPLERS,
        help="where values come from: a model of what was good (tpe, the default), chance, a grid",
    )
    parser.add_argument("--metric", choices=METRICS, default="val_loss", help="what is minimised")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="trials at a time (default: one a "
        "GPU, without GPUs one a core; of a population all); cores are divided among them",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="the search's folder, new or to go "
        "on with; on several machines a place that all of them see",
    )
    parser.add_argument(
        "--address",
        metavar="RAY",
        help="a Ray cluster's address, or auto (default: Ray on this machine alone)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the search (default: 0); a trial's is seed=N",
    )
    given = parser.parse_intermixed_args(arguments)
    for override in given.overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: not understood; write key=value or key=value,value")
    options = TuneOptions(
        scheduler=given.scheduler,
        sampler=given.search,
        trials=given.trials,
        jobs=given.jobs,
        metric=given.metric,
        directory=given.dir,
        address=given.address,
        seed=given.seed,
    )
    try:
        import optuna  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError(f"minigpt tune: Ray is not installed ({error}); {INSTALL}") from None

    from minigpt.tune.search import search

    search(given.overrides, options)
