"""`minigpt tune`: search for the best config with many runs, most of them stopped early."""

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
    """Check the options, and start or resume the search."""
    given = _parser().parse_intermixed_args(arguments)
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


def _parser() -> Parser:
    parser = Parser(
        "tune",
        "Search for the config with the least validation loss. Overrides with several values are\n"
        "searched; all others apply to every trial. Each trial is a run in the search's folder,\n"
        "and the best config is saved there as best.yaml. The same command with --dir resumes a\n"
        "search that was stopped or killed.",
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
        help=f"number of trials (default: {DEFAULT_TRIALS}, of a population {DEFAULT_POPULATION}; "
        "--search grid: every combination)",
    )
    parser.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        default="asha",
        help="early stopping: asynchronous successive halving (asha, the default), hyperband, "
        "population based training of optimizer.* (pbt), or none",
    )
    parser.add_argument(
        "--search",
        choices=SAMPLERS,
        help="how values are chosen: Bayesian optimisation (tpe, the default), random or grid",
    )
    parser.add_argument(
        "--metric", choices=METRICS, default="val_loss", help="the metric to minimise"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="concurrent trials (default: one per GPU, without GPUs one per core; a whole "
        "population); cores are divided among them",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="the search's folder, new or to resume; for several machines on a shared file system",
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
        help="seed of the search (default: 0); trials use the override seed=N",
    )
    return parser
