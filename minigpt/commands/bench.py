"""`minigpt bench`: measure speed and memory on this machine, and print tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser
from minigpt.errors import UserError, require, require_one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minigpt.config.schema import Config
    from minigpt.report.tables import Table


@dataclass(frozen=True)
class Result:
    """A table, the device, more facts to print, and a figure if the benchmark plots one."""

    table: Table
    device: str
    facts: dict[str, str]
    figure: Figure | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it measures, its options with their defaults, an example, a function."""

    help: str
    options: dict[str, str]
    example: str
    measure: Callable[[Namespace], Result]
    repeats: int = 5


HELP = {
    "axes": "axes to measure",
    "backends": "backends to measure",
    "batch": "texts at once, as 1,64",
    "context": "tokens per window",
    "corpus": "tokens in the corpus",
    "depth": "layers",
    "folder": "where to write the shards (default: the system's temporary folder)",
    "lengths": "tokens per window, as 64,256",
    "prompt": "tokens in the prompt",
    "repeats": "repeats, in turns",
    "replicas": "runs at once",
    "sparse": "write holes instead of random tokens",
    "steps": "timed steps per repeat",
    "tokens": "tokens per text or step",
    "vocabulary": "tokens in the vocabulary",
    "warmup": "steps before them",
    "width": "model.n_embd",
}
LISTS = ("batch", "context", "corpus", "depth", "lengths", "width")
METAVARS = {"axes": "NAME,...", "backends": "NAME,...", "folder": "DIR"}  # not numbers
AXES = {"context": "64,128,256,512,1024,2048", "width": "64,128,256,512", "depth": "1,2,4,8,16"}
AXES |= {"corpus": "1e6,1e7,1e8,1e9"}


def main(arguments: list[str]) -> None:
    """Run one benchmark, print its table, and write it as JSON or Markdown if asked to."""
    listed = "\n".join(f"  {name:<11} {b.help}" for name, b in BENCHMARKS.items())
    parser = Parser(
        "bench",
        f"Measure speed and memory on this machine:\n\n{listed}\n\n"
        "minigpt bench WHAT --help shows the options of one.",
        [benchmark.example for benchmark in BENCHMARKS.values()],
    )
    parser.add_argument("what", metavar="WHAT", choices=tuple(BENCHMARKS), help="what to measure")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its options")
    first = parser.parse_args(arguments)
    options = _options(first.what, BENCHMARKS[first.what], first.rest)

    from minigpt.bench.measure import machine
    from minigpt.console import PipeConsole
    from minigpt.report.tables import to_plain, to_rich

    result = BENCHMARKS[first.what].measure(options)
    table, facts = result.table, machine(result.device) | result.facts
    console = PipeConsole(highlight=False)
    parts = to_rich(table, console.width) if console.is_terminal else to_plain(table)
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    for part in [*parts, table.note, about]:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    if options.json is not None:
        _write_json(options.json, table, facts)
    if options.out is not None:
        command = shlex.join(["minigpt", "bench", *arguments])
        _write_page(options.out, result, f"Written by `{command}`: {about}.")


def _options(what: str, benchmark: Benchmark, arguments: list[str]) -> Namespace:
    """Parse the options of one benchmark. Raises UserError."""
    parser = Parser(
        f"bench {what}", f"{benchmark.help[0].upper()}{benchmark.help[1:]}.", [benchmark.example]
    )
    if what == "group":
        parser.add_argument("group", metavar="GROUP", help="a config group, as positional")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as of minigpt train")
    for name, default in ({"repeats": f"{benchmark.repeats}", **benchmark.options}).items():
        if name == "sparse":
            parser.add_argument("--sparse", action="store_true", help=HELP[name])
            continue
        text = HELP[name] + (f" (default: {default})" if default else "")
        metavar = METAVARS.get(name, "N,N,..." if name in LISTS else "N")
        parser.add_argument(f"--{name}", default=default, metavar=metavar, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write a Markdown page")
    options = parser.parse_intermixed_args(arguments)
    for name in ("repeats", *benchmark.options):
        if name not in (*METAVARS, "sparse"):
            least = 2 if (what, name) == ("decode", "tokens") else 1
            setattr(options, name, _whole_numbers(name, getattr(options, name), least))
    return options


def _whole_numbers(name: str, text: str, least: int) -> list[int] | int:
    """Return a number, or a list of them for the options in LISTS."""
    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(number.is_integer() for number in numbers):
            raise ValueError
    except ValueError:
        raise UserError(f"--{name}={text}: give whole numbers, as 1,64") from None
    require(min(numbers) >= least, f"--{name}", text, f"must be {least} or more")
    require(name in LISTS or len(numbers) == 1, f"--{name}", text, "takes one number")
    return [int(number) for number in numbers] if name in LISTS else int(numbers[0])


def _configs(overrides: list[str]) -> list[tuple[str, Config]]:
    """Return each combination of the values given, with a label. Raises UserError."""
    from minigpt.config.compose import composed_config
    from minigpt.config.overrides import combinations
    from minigpt.sweep.plan import labels

    jobs = combinations(overrides)
    names = labels(jobs) if len(jobs) > 1 else [" ".join(overrides) or "default"]
    return [(name, composed_config(job)) for name, job in zip(names, jobs, strict=True)]


def _one_config(what: str, overrides: list[str]) -> Config:
    """Return the only config. Raises UserError if a key has several values."""
    (_, config), *more = _configs(overrides)
    if more:
        raise UserError(
            f"{' '.join(overrides)}: bench {what} takes one config; give each key one value"
        )
    return config


def _device(config: Config) -> str:
    from minigpt.runtime import choose_runtime

    return choose_runtime(config.trainer.device, config.trainer.precision).device


def _train(options: Namespace) -> Result:
    from minigpt.bench.train import measure_training, table

    configs = _configs(options.overrides)
    measured, limits = measure_training(configs, options.steps, options.warmup, options.repeats)
    ceilings = "; ".join(limit.describe(precision) for precision, limit in limits.items())
    device = measured[0].runtime.device
    return Result(table(measured, limits), device, {"ceilings": ceilings})


def _attention(options: Namespace) -> Result:
    from minigpt.bench.attention import measure_attention

    device = _device(_one_config("attention", options.overrides))
    tokens, lengths = options.tokens, options.lengths
    table = measure_attention(options.overrides, lengths, tokens, options.repeats, device)
    return Result(table, device, {})


def _group(options: Namespace) -> Result:
    from minigpt.bench.group import GROUPS, measure_group
    from minigpt.model.backends import BACKENDS

    require_one_of("GROUP", options.group, GROUPS)
    backends = options.backends.split(",")
    for backend in backends:
        require_one_of("--backends", backend, BACKENDS)
    device = _device(_one_config("group", options.overrides))
    sizes = (options.lengths, options.tokens, options.repeats)
    table = measure_group(options.group, options.overrides, backends, *sizes, device)
    return Result(table, device, {})


def _decode(options: Namespace) -> Result:
    from minigpt.bench.decode import measure_decoding

    configs, tokens = _configs(options.overrides), options.tokens
    table = measure_decoding(configs, options.batch, tokens, options.prompt, options.repeats)
    return Result(table, _device(configs[0][1]), {})


def _startup(options: Namespace) -> Result:
    from minigpt.bench.startup import measure_startup

    device = _device(_one_config("startup", options.overrides))
    return Result(measure_startup(options.overrides, options.repeats), device, {})


def _replicas(options: Namespace) -> Result:
    from minigpt.bench.replicas import measure_replicas

    config, turns = _one_config("replicas", options.overrides), options.repeats * options.steps
    table = measure_replicas(config, options.replicas, turns, options.warmup)
    return Result(table, _device(config), {})


def _vocabulary(options: Namespace) -> Result:
    from minigpt.bench.vocabulary import measure_vocabulary

    config = _one_config("vocabulary", options.overrides)
    table = measure_vocabulary(
        options.overrides, options.vocabulary, options.tokens, options.repeats
    )
    return Result(table, _device(config), {})


def _growth(options: Namespace) -> Result:
    from minigpt.bench.growth import measure_growth

    axes = options.axes.split(",")
    for axis in axes:
        require_one_of("--axes", axis, AXES)
    device = _device(_one_config("growth", options.overrides))
    table, figure = measure_growth(
        {axis: getattr(options, axis) for axis in axes},
        options.overrides,
        *(options.tokens, options.steps, options.warmup, options.repeats),
        options.folder or None,
        options.sparse,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return Result(table, device, {}, figure)


def _write_json(path: Path, table: Table, facts: dict[str, Any]) -> None:
    from minigpt.files import write_json

    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    write_json(path, {"benchmark": table.name, "machine": facts, "rows": rows})


def _write_page(path: Path, result: Result, about: str) -> None:
    """Write the table as Markdown, and the figure as a PNG next to it."""
    from minigpt.files import write_text
    from minigpt.report.tables import to_markdown

    path.parent.mkdir(parents=True, exist_ok=True)
    heading, _, body = to_markdown(result.table).partition("\n")
    lines = [heading.removeprefix("#"), "", about, body]
    if result.figure is not None:
        picture = path.with_suffix(".png")
        result.figure.savefig(picture, dpi=120)
        lines += [f"![{result.table.title}]({picture.name})", ""]
    write_text(path, "\n".join(lines))


BENCHMARKS = {
    "train": Benchmark(
        "time of a training step",
        {"steps": "50", "warmup": "10"},
        "minigpt bench train model=rope,alibi trainer.precision=fp32,bf16",
        _train,
    ),
    "attention": Benchmark(
        "one layer of a design, by backend and context length",
        {"tokens": "4096", "lengths": "64,256,1024"},
        "minigpt bench attention positional=t5 --lengths 64,256,1024",
        _attention,
    ),
    "group": Benchmark(
        "one layer with every choice of a config group, by backend and context length",
        {"tokens": "4096", "lengths": "64,256,1024,4096", "backends": "eager,sdpa,flex"},
        "minigpt bench group positional --out positional_cost.md",
        _group,
    ),
    "decode": Benchmark(
        "time of a generated token",
        {"tokens": "500", "prompt": "16", "batch": "1"},
        "minigpt bench decode experiment=nanogpt_baby --tokens 500 --batch 1,64",
        _decode,
    ),
    "startup": Benchmark(
        "time from the command to the first step",
        {},
        "minigpt bench startup --repeats 5 --json startup.json",
        _startup,
    ),
    "replicas": Benchmark(
        "several runs: one after the other, and as one program",
        {"replicas": "8", "steps": "10", "warmup": "3"},
        "minigpt bench replicas experiment=seed_blog --replicas 8",
        _replicas,
    ),
    "vocabulary": Benchmark(
        "memory of a large vocabulary's logits: in chunks, and in one piece",
        {"vocabulary": "50257", "tokens": "2048"},
        "minigpt bench vocabulary --vocabulary 50257 --tokens 8192",
        _vocabulary,
        repeats=3,
    ),
    "growth": Benchmark(
        "step time and memory against context, width, depth and corpus",
        {
            **{"axes": ",".join(AXES), **AXES, "tokens": "4096", "steps": "20", "warmup": "3"},
            **{"folder": "", "sparse": ""},
        },
        "minigpt bench growth --corpus 1e6,1e8,5e9 --out growth.md",
        _growth,
        repeats=3,
    ),
}
