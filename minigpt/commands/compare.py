"""`minigpt compare`: search every design alike, then compare the best of each on fresh seeds."""

from __future__ import annotations

from minigpt.commands.options import Parser, path_option
from minigpt.compare.options import (
    DEFAULT_BUDGET,
    DEFAULT_SEARCH_SEEDS,
    DEFAULT_SEEDS,
    SEARCHES,
    CompareOptions,
)
from minigpt.tune.options import require_ray

HELP = {
    "--budget": f"trials of each design (default: {DEFAULT_BUDGET})",
    "--seeds": f"fresh seeds of each design, with its best values (default: {DEFAULT_SEEDS})",
    "--search": "grid: the same grid for every design (the default); tpe: Ray Tune proposes values "
    "by Bayesian optimisation, and ASHA stops trials early, as in minigpt tune",
    "--search-seeds": "seeds of each trial, other than the fresh ones (default: "
    f"{DEFAULT_SEARCH_SEEDS}; --search tpe: 1)",
    "--space": "values to search, a list or an interval; repeatable (default: the learning rate, "
    "in factors of 2 around the configured one, and with a budget of 6 or more weight decay too)",
    "--dir": "the comparison's folder (default: below runs/, the same for the same command)",
}


def main(arguments: list[str]) -> None:
    """Run a comparison, or what is missing of it."""
    parser = Parser(
        "compare",
        "Compare designs, each at its own best: every design gets the same search, and its best\n"
        "values by validation loss are trained with fresh seeds, which are compared on a test\n"
        "split (half of the validation text; data.test_fraction). Overrides with several values\n"
        "are the designs. If a best learning rate, or a best value of another logarithmic\n"
        "interval, is at the edge of the space, the space is widened once for every design.\n"
        "More --seeds can be added later.\n"
        "The same command runs what is missing of a comparison that was stopped.",
        [
            "minigpt compare model=learned,rope,alibi",
            "minigpt compare norm=pre,post experiment=seed_blog --budget 12 --seeds 5",
            "minigpt compare ffn=gelu,swiglu --space optimizer.lr='tag(log,interval(1e-3,2e-2))'",
            "minigpt compare sweep=positional --space optimizer.beta2=0.95,0.99",
            "minigpt compare model=rope,alibi --search tpe --budget 16 trainer.eval_every=100",
        ],
    )
    add = parser.add_argument
    parser.add_overrides()
    add("--budget", type=int, default=DEFAULT_BUDGET, metavar="N", help=HELP["--budget"])
    add("--seeds", type=int, default=DEFAULT_SEEDS, metavar="N", help=HELP["--seeds"])
    add("--search", choices=SEARCHES, default=SEARCHES[0], help=HELP["--search"])
    add("--search-seeds", type=int, metavar="N", help=HELP["--search-seeds"])
    add("--space", action="append", default=[], metavar="KEY=VALUES", help=HELP["--space"])
    add("--dir", type=path_option, metavar="DIR", dest="directory", help=HELP["--dir"])
    given = vars(parser.parse(arguments))
    overrides, space = given.pop("overrides"), tuple(given.pop("space"))
    options = CompareOptions(space=space, **given)

    if options.search == "tpe":
        require_ray("minigpt compare --search tpe")

    from minigpt.compare.run import run_comparison

    run_comparison(overrides, options)
