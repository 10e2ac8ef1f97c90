"""`minigpt bench`: what this machine does with a design, in tables."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser
from minigpt.errors import UserError, require

if TYPE_CHECKING:
    from minigpt.config.schema import Config
    from minigpt.report.tables import Table

HELP = {
    "steps": "timed steps a turn",
    "warmup": "steps before them",
    "tokens": "of each text, or in all windows",
    "prompt": "tokens of the prompt",
    "batch": "texts at once, as 1,64",
    "lengths": "of windows, as 64,256",
    "replicas": "runs at once",
}
LISTS = ("batch", "lengths")
OPTIONS = {  # of each benchmark, and their defaults
    "train": {"steps": "50", "warmup": "10"},
    "attention": {"tokens": "4096", "lengths": "64,256,1024"},
    "decode": {"tokens": "500", "prompt": "16", "batch": "1"},
    "startup": {},
    "replicas": {"replicas": "8", "steps": "10", "warmup": "3"},
}


def main(arguments: list[str]) -> None:
    """Measure what was asked for, print a table, and write it as JSON where asked to."""
    parser = Parser(
        "bench",
        "Measure speed here: training, a layer's backends, decoding, starting, many runs at once.\n"
        "Overrides are those of minigpt train; what has several values is compared in turns.",
        [
            "minigpt bench train model=rope,alibi trainer.precision=fp32,bf16",
            "minigpt bench attention positional=t5 --lengths 64,256,1024",
            "minigpt bench decode experiment=nanogpt_baby --tokens 500 --batch 1,64",
            "minigpt bench startup --repeats 5 --json startup.json",
            "minigpt bench replicas experiment=seed_blog --replicas 8",
        ],
    )
    parser.add_argument("what", choices=tuple(BENCHMARKS), help="what to measure")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of minigpt train")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default: 5)")
    for name, text in HELP.items():
        values = {what: own[name] for what, own in OPTIONS.items() if name in own}
        default = ", ".join(f"{what} {value}" for what, value in values.items())
        parser.add_argument(f"--{name}", metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_intermixed_args(arguments)
    require(options.repeats >= 1, "--repeats", options.repeats, "must be 1 or more")
    own = OPTIONS[options.what]
    for name in HELP:
        given = getattr(options, name)
        if given is not None and name not in own:
            users = ", ".join(what for what, names in OPTIONS.items() if name in names)
            raise UserError(f"--{name}={given}: is of bench {users}; leave it out")
        least = 2 if (options.what, name) == ("decode", "tokens") else 1
        setattr(options, name, _whole_numbers(name, given or own.get(name, "1"), least))

    from rich.console import Console

    from minigpt.bench.measure import machine
    from minigpt.console import PipeConsole
    from minigpt.report.tables import to_plain, to_rich

    table, facts = BENCHMARKS[options.what](options)
    facts = machine(facts.pop("device")) | facts
    console: Console = PipeConsole(highlight=False)
    parts = to_rich(table, console.width) if console.is_terminal else to_plain(table)
    lines = [*parts, table.note, ", ".join(f"{key} {value}" for key, value in facts.items())]
    for part in lines:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    if options.json is not None:
        _write(options.json, table, facts)


def _whole_numbers(name: str, text: str, least: int) -> list[int] | int:
    """A number, or of LISTS several."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{name}={text}: give whole numbers, as 1,64") from None
    require(min(numbers) >= least, f"--{name}", text, f"must be {least} or more")
    require(name in LISTS or len(numbers) == 1, f"--{name}", text, "takes one number")
    return numbers if name in LISTS else numbers[0]


def _configs(overrides: list[str]) -> list[tuple[str, Config]]:
    """The product of what has several values, each with a label. Raises UserError."""
    from minigpt.config.compose import composed_config
    from minigpt.config.overrides import combinations
    from minigpt.sweep.plan import labels

    jobs = combinations(overrides)
    names = labels(jobs) if len(jobs) > 1 else [" ".join(overrides) or "default"]
    return [(name, composed_config(job)) for name, job in zip(names, jobs, strict=True)]


def _one_config(options: Namespace) -> Config:
    """The only config; of several this benchmark makes no comparison. Raises UserError."""
    (_, config), *more = _configs(options.overrides)
    if more:
        raise UserError(
            f"{' '.join(options.overrides)}: bench {options.what} takes one config; give each key "
            f"one value"
        )
    return config


def _device(config: Config) -> str:
    from minigpt.runtime import choose_runtime

    return choose_runtime(config.trainer.device, config.trainer.precision).device


def _train(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.train import measure_training, table

    configs = _configs(options.overrides)
    found, limits = measure_training(configs, options.steps, options.warmup, options.repeats)
    ceilings = "; ".join(limit.describe(precision) for precision, limit in limits.items())
    return table(found, limits), {"device": found[0].runtime.device, "ceilings": ceilings}


def _attention(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.attention import measure_attention

    device = _device(_one_config(options))
    tokens, lengths = options.tokens, options.lengths
    found = measure_attention(options.overrides, lengths, tokens, options.repeats, device)
    return found, {"device": device}


def _decode(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.decode import measure_decoding

    configs, tokens = _configs(options.overrides), options.tokens
    found = measure_decoding(configs, options.batch, tokens, options.prompt, options.repeats)
    return found, {"device": _device(configs[0][1])}


def _startup(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.startup import measure_startup

    device = _device(_one_config(options))
    return measure_startup(options.overrides, options.repeats), {"device": device}


def _replicas(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.replicas import measure_replicas

    config, turns = _one_config(options), options.repeats * options.steps
    found = measure_replicas(config, options.replicas, turns, options.warmup)
    return found, {"device": _device(config)}


def _write(path: Path, table: Table, facts: dict[str, Any]) -> None:
    from minigpt.files import write_json

    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    write_json(path, {"benchmark": table.name, "machine": facts, "rows": rows})


BENCHMARKS = {
    "train": _train,
    "attention": _attention,
    "decode": _decode,
    "startup": _startup,
    "replicas": _replicas,
}
