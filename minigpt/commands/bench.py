"""`minigpt bench`: what this machine does with a design, in tables."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser
from minigpt.errors import UserError, require

if TYPE_CHECKING:
    from minigpt.config import Config
    from minigpt.report.tables import Table


def main(arguments: list[str]) -> None:
    """Measure what was asked for, print a table, and write it as JSON where asked to."""
    parser = Parser(
        "bench",
        "Measure speed here: training steps, a layer's backends, decoding, or starting.\n"
        "Overrides are those of minigpt train; what has several values is compared in turns.",
        [
            "minigpt bench train model=rope,alibi trainer.precision=fp32,bf16",
            "minigpt bench attention positional=t5 --lengths 64,256,1024",
            "minigpt bench decode experiment=nanogpt_baby --tokens 500 --batch 1,64",
            "minigpt bench startup --repeats 5 --json startup.json",
        ],
    )
    parser.add_argument("what", choices=tuple(BENCHMARKS), help="what to measure")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of minigpt train")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=50, metavar="N", help="train: timed steps a turn (default: 50)"
    )
    parser.add_argument(
        "--warmup", type=int, default=10, metavar="N", help="train: steps before (default: 10)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="decode: of each text (default: 500); attention: in all windows (default: 4096)",
    )
    parser.add_argument(
        "--prompt", type=int, default=16, metavar="N", help="decode: tokens of it (default: 16)"
    )
    parser.add_argument(
        "--batch", default="1", metavar="N,...", help="decode: texts at once (default: 1)"
    )
    parser.add_argument(
        "--lengths",
        default="64,256,1024",
        metavar="N,...",
        help="attention: of windows (default: 64,256,1024)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_intermixed_args(arguments)
    for name in ("repeats", "steps", "prompt"):
        value = getattr(options, name)
        require(value >= 1, f"--{name}", value, "must be 1 or more")
    require(options.warmup >= 1, "--warmup", options.warmup, "must be 1 or more")
    for name, least in (("batch", 1), ("lengths", 1)):
        setattr(options, name, _whole_numbers(f"--{name}", getattr(options, name), least))
    least = 2 if options.what == "decode" else 1
    tokens = options.tokens
    require(tokens is None or tokens >= least, "--tokens", tokens, f"must be {least} or more")

    from rich.console import Console

    from minigpt.bench.measure import machine
    from minigpt.display import PipeConsole
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


def _whole_numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}={text}: give whole numbers, as 1,64") from None
    require(min(numbers) >= least, flag, text, f"must be {least} or more")
    return numbers


def _configs(overrides: list[str]) -> list[tuple[str, Config]]:
    """The product of what has several values, each with a label. Raises UserError."""
    from minigpt.config import composed_config
    from minigpt.hydra_app import combinations
    from minigpt.sweep.plan import labels

    jobs = combinations(overrides)
    names = labels(jobs) if len(jobs) > 1 else [" ".join(overrides) or "default"]
    return [(name, composed_config(job)) for name, job in zip(names, jobs, strict=True)]


def _device(configs: list[tuple[str, Config]]) -> str:
    from minigpt.train.device import choose_compute

    (_, config), *_ = configs
    return choose_compute(config.trainer.device, config.trainer.precision).device


def _train(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.train import measure_training, table

    configs = _configs(options.overrides)
    found, limits = measure_training(configs, options.steps, options.warmup, options.repeats)
    precision = found[0].compute.precision
    facts = {"device": found[0].compute.device, "ceilings": limits.describe(precision)}
    return table(found, limits), facts


def _attention(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.attention import measure_attention

    device = _device(_configs(options.overrides))
    tokens = options.tokens or 4096
    found = measure_attention(options.overrides, options.lengths, tokens, options.repeats, device)
    return found, {"device": device}


def _decode(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.decode import measure_decoding

    configs = _configs(options.overrides)
    tokens = options.tokens or 500
    found = measure_decoding(configs, options.batch, tokens, options.prompt, options.repeats)
    return found, {"device": _device(configs)}


def _startup(options: Namespace) -> tuple[Table, dict[str, Any]]:
    from minigpt.bench.startup import measure_startup

    device = _device(_configs(options.overrides))
    return measure_startup(options.overrides, options.repeats), {"device": device}


def _write(path: Path, table: Table, facts: dict[str, Any]) -> None:
    from minigpt.files import write_json

    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    write_json(path, {"benchmark": table.name, "machine": facts, "rows": rows})


BENCHMARKS = {"train": _train, "attention": _attention, "decode": _decode, "startup": _startup}
