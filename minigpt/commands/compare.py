"""`minigpt compare`: search every design alike, then compare the best of each on fresh seeds."""

from __future__ import annotations

from minigpt.commands.options import Parser, path_option
from minigpt.compare.options import DEFAULT_BUDGET, DEFAULT_SEEDS, CompareOptions

HELP = {
    "--budget": f"trials of each design (default: {DEFAULT_BUDGET})",
    "--seeds": f"fresh seeds of each design, with its best values (default: {DEFAULT_SEEDS})",
    "--search-seeds": "seeds of each trial, other than the fresh ones (default: 1)",
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
        "are the designs. If a best value is at the edge of the space, the space is widened once.\n"
        "The same command runs what is missing of a comparison that was stopped.",
        [
            "minigpt compare model=learned,rope,alibi",
            "minigpt compare norm=pre,post experiment=seed_blog --budget 12 --seeds 5",
            "minigpt compare ffn=gelu,swiglu --space optimizer.lr='tag(log,interval(1e-3,2e-2))'",
            "minigpt compare sweep=positional --space optimizer.beta2=0.95,0.99",
        ],
    )
    add = parser.add_argument
    parser.add_overrides()
    add("--budget", type=int, default=DEFAULT_BUDGET, metavar="N", help=HELP["--budget"])
    add("--seeds", type=int, default=DEFAULT_SEEDS, metavar="N", help=HELP["--seeds"])
    add("--search-seeds", type=int, default=1, metavar="N", help=HELP["--search-seeds"])
    add("--space", action="append", default=[], metavar="KEY=VALUES", help=HELP["--space"])
    add("--dir", type=path_option, metavar="DIR", dest="directory", help=HELP["--dir"])
    given = vars(parser.parse(arguments))
    overrides, space = given.pop("overrides"), tuple(given.pop("space"))
    options = CompareOptions(space=space, **given)

    from minigpt.compare.run import run_comparison

    run_comparison(overrides, options)
