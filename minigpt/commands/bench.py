"""`minigpt bench`: measure speed and memory on this machine, and print tables."""

from __future__ import annotations

import argparse
import math
import shlex
from argparse import Namespace
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigpt.commands.options import Parser
from minigpt.config.pairs import parse_override
from minigpt.errors import Failure, UserError, require
from minigpt.files import require_writable
from minigpt.loss_of import CAUSAL

if TYPE_CHECKING:
    from minigpt.bench.measure import Design, Result

AXES = {"context": "64,128,256,512,1024,2048", "width": "64,128,256,512", "depth": "1,2,4,8,16"}
AXES |= {"corpus": "1e6,1e7,1e8,1e9"}


class Benchmark(NamedTuple):
    """A benchmark in `minigpt.bench`. Its options are the keyword arguments of its `measure`.

    `repeats`: their default number; None: it computes, and measures nothing. `own`: overrides that
    it sets itself, and what to do instead of giving them.
    """

    help: str
    example: str
    options: dict[str, str | None]  # name: default
    repeats: str | None = "5"
    own: Mapping[str, str] = {}


SET = "is set by this benchmark; leave it out"
OF_EVERY_OBJECTIVE = ("train", "parallel")
UNCOUNTED = "plans do not count what it changes; leave it out"


BENCHMARKS = {
    "train": Benchmark(
        "time of a training step",
        "minigpt bench train model=rope,alibi trainer.precision=fp32,bf16",
        {"steps": "50", "warmup": "10", "profile": None},
    ),
    "attention": Benchmark(
        "one layer of a design, by backend and context length",
        "minigpt bench attention positional=t5 --lengths 64,256,1024",
        {"tokens": "4096", "lengths": "64,256,1024"},
    ),
    "group": Benchmark(
        "one layer with every choice of a config group, by backend and context length",
        "minigpt bench group positional --out positional_cost.md",
        {"tokens": "4096", "lengths": "64,256,1024,4096", "backends": "eager,sdpa,flex"},
    ),
    "decode": Benchmark(
        "time of a generated token",
        "minigpt bench decode experiment=nanogpt_baby --tokens 500 --batch 1,64",
        {"tokens": "500", "prompt": "16", "batch": "1"},
    ),
    "startup": Benchmark(
        "time from the command to the first step",
        "minigpt bench startup --repeats 5 --json startup.json",
        {},
        own={"trainer.log_every": SET, "trainer.sample_every": SET, "logger": SET},
    ),
    "busy": Benchmark(
        "train, eval and sample while other programs use the cores (a quarter of an hour)",
        "minigpt bench busy --competitors 0,1,2,4",
        {"competitors": "0,1,2,4", "steps": "100"},
        repeats="3",
        own={"trainer.max_steps": "use --steps", "trainer.sample_every": SET, "logger": SET},
    ),
    "parallel": Benchmark(
        "one run on several processes, in every mode, against one process",
        "minigpt bench parallel model=rope --processes 1,2",
        {"processes": "1,2", "steps": "50"},
        repeats="3",
        own={
            **dict.fromkeys(("trainer.parallel", "trainer.processes", "logger"), SET),
            **dict.fromkeys(("trainer.compile", "trainer.log_every"), SET),
            "trainer.max_steps": "use --steps",
        },
    ),
    "plan": Benchmark(
        "memory, exchanged bytes and step time on many devices, by formulas",
        "minigpt bench plan model=rope --devices 64 --flops 400e12 --bandwidth 300e9",
        {"devices": "64", "flops": None, "bandwidth": None, "latency": "0", "scaling": "strong"},
        repeats=None,
        own={
            **dict.fromkeys(
                ("trainer.parallel", "trainer.processes"), "a plan has every mode; leave it out"
            ),
            **dict.fromkeys(("trainer.compile", "trainer.graph", "objective.teacher"), UNCOUNTED),
        },
    ),
    "replicas": Benchmark(
        "several runs: sequentially, and as one batched program",
        "minigpt bench replicas experiment=seed_blog --replicas 8",
        {"replicas": "8", "steps": "10", "warmup": "3"},
    ),
    "vocabulary": Benchmark(
        "memory of a large vocabulary's logits: in chunks, and all at once",
        "minigpt bench vocabulary --vocabulary 50257 --tokens 8192",
        {"vocabulary": "50257", "tokens": "2048"},
        repeats="3",
    ),
    "growth": Benchmark(
        "step time and memory as context, width, depth and corpus grow",
        "minigpt bench growth --corpus 1e6,1e8,5e9 --out growth.md",
        {"axes": ",".join(AXES), **AXES, "tokens": "4096", "steps": "20", "warmup": "3"}
        | {"folder": None, "sparse": None},
        repeats="3",
    ),
    "gpu": Benchmark(
        "all figures of one GPU that have a target",
        "minigpt bench gpu --nanogpt nanoGPT --json gpu.json",
        {"nanogpt": None},
        repeats="1",
    ),
}
HELP = {
    "axes": "axes to measure",
    "backends": "backends to measure",
    "bandwidth": "bytes/s that a device sends in a collective, such as 300e9; required",
    "batch": "batch sizes, such as 1,64",
    "competitors": "endless loops that run at the same time",
    "context": "tokens per window",
    "corpus": "tokens in the corpus",
    "depth": "layers",
    "devices": "the largest number of devices; the others are powers of two",
    "flops": "FLOP/s that a device reaches in training, such as 400e12 (see minigpt bench train); "
    "required",
    "folder": "where to write the shards (default: the system's temporary folder)",
    "latency": "seconds that a collective takes besides its bytes, such as 20e-6",
    "lengths": "tokens per window, such as 64,256",
    "nanogpt": "a checkout of nanoGPT to compare with",
    "processes": "numbers of processes",
    "profile": "also profile the first config: top operators, and a trace for ui.perfetto.dev",
    "prompt": "tokens in the prompt",
    "repeats": "number of repeats, interleaved between configs",
    "replicas": "number of runs trained at once",
    "scaling": "strong: trainer.batch_size is the batch of the run; weak: of each device",
    "sparse": "write sparse files instead of random tokens",
    "steps": "timed steps per repeat",
    "tokens": "tokens per sequence or step",
    "vocabulary": "tokens in the vocabulary",
    "warmup": "untimed steps before each repeat",
    "width": "model.n_embd",
}
LEAST = {("decode", "tokens"): 2, ("busy", "competitors"): 0}
MOST = {("plan", "devices"): 2**20}
LISTS = ("batch", "competitors", "context", "corpus", "depth", "lengths", "processes", "width")
METAVARS = {"axes": "NAME,...", "backends": "NAME,...", "folder": "DIR", "sparse": ""}
METAVARS |= {"nanogpt": "DIR", "profile": "FILE", "scaling": "{strong,weak}"}
# Numbers that may be fractions: their unit and an example.
RATES = {"bandwidth": ("BYTES/S", "300e9"), "flops": ("FLOP/S", "400e12")}
RATES |= {"latency": ("SECONDS", "20e-6")}
METAVARS |= {name: unit for name, (unit, _) in RATES.items()}
FOLDERS = ("folder", "nanogpt")
FILES = ("json", "out", "profile")  # options that name a file to write
SEVERAL_CONFIGS = ("train", "decode")
# Overrides that no benchmark uses, and why.
UNUSED = {
    "resume": "benchmarks train new runs; leave it out",
    "hydra.run.dir": "benchmarks keep no runs; leave it out",
}


def main(arguments: list[str]) -> None:
    """Run one benchmark, print its table, and write it as JSON or Markdown if asked to.

    Raises Failure at the end if a part was not measured.
    """
    listed = "\n".join(f"  {name:<11} {b.help}" for name, b in BENCHMARKS.items())
    parser = Parser(
        "bench",
        f"Measure speed and memory on this machine, or plan them for others:\n\n{listed}\n\n"
        "minigpt bench WHAT --help shows the options of one.",
        [benchmark.example for benchmark in BENCHMARKS.values()],
    )
    parser.add_argument("what", metavar="WHAT", choices=tuple(BENCHMARKS), help="the benchmark")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its options")
    first = parser.parse(arguments)
    options = _options(first.what, first.rest)

    from minigpt.bench.measure import as_dicts, machine
    from minigpt.bench.programs import ended_by_signals
    from minigpt.console import PipeConsole
    from minigpt.files import write_json
    from minigpt.report.tables import print_table

    design = _design(first.what, options.overrides)
    values = {name: getattr(options, name) for name in _defaults(first.what)}
    if first.what == "group":
        values["group"] = options.group
    benchmark = import_module(f"minigpt.bench.{first.what}")
    with ended_by_signals(), design.progress:
        result: Result = benchmark.measure(design, **values)
    table, here = result.table, machine(design.device)
    if BENCHMARKS[first.what].repeats is None:
        here = {key: here[key] for key in ("torch", "date")}
    facts = here | result.facts
    console = PipeConsole(highlight=False)
    for each in (table, *result.details):
        print_table(each, console)
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    for line in (table.note, about):
        console.print(line, soft_wrap=True, markup=False)
    if options.json is not None:
        details = {each.name: as_dicts(each) for each in result.details}
        measured = {"benchmark": table.name, "machine": facts, "rows": as_dicts(table)}
        write_json(options.json, measured | details)
    if options.out is not None:
        command = shlex.join(["minigpt", "bench", *arguments])
        _write_page(options.out, result, f"Written by `{command}`: {about}.")
    if result.missing:
        raise Failure(f"not measured: {', '.join(result.missing)}; the table says why")


def _options(what: str, arguments: list[str]) -> Namespace:
    benchmark = BENCHMARKS[what]
    description = f"{benchmark.help[0].upper()}{benchmark.help[1:]}."
    parser = Parser(f"bench {what}", description, [benchmark.example])
    if what == "group":
        parser.add_argument("group", metavar="GROUP", help="a config group, such as positional")
    parser.add_overrides()
    defaults = _defaults(what)
    for name, default in defaults.items():
        metavar = METAVARS.get(name, "N,N,..." if name in LISTS else "N")
        text = HELP[name] + (f" (default: {default})" if default else "")
        setting = Path if metavar in ("FILE", "DIR") else default
        parser.add_options({f"--{name} {metavar}": text}, **{name: setting})
    files = {
        "--json FILE": "also write the figures as JSON",
        "--out FILE.md": "also write a Markdown page",
    }
    parser.add_options(files, json=Path, out=Path)
    options = parser.parse(arguments)
    _require_paths(options)
    for name in defaults:
        if name not in METAVARS:
            limits = LEAST.get((what, name), 1), MOST.get((what, name))
            setattr(options, name, _whole_numbers(name, getattr(options, name), *limits))
        elif name in RATES:
            setattr(options, name, _rate(name, getattr(options, name)))
    return options


def _defaults(what: str) -> dict[str, str | None]:
    """Return the default of each option of a benchmark by its name."""
    repeats = BENCHMARKS[what].repeats
    return ({} if repeats is None else {"repeats": repeats}) | BENCHMARKS[what].options


def _require_paths(options: Namespace) -> None:
    """Raise UserError unless folders exist and files can be written, each to its own path."""
    for name in FOLDERS:
        folder = getattr(options, name, None)
        require(folder is None or folder.is_dir(), f"--{name}", folder, "no such folder; create it")
    paths = {name: getattr(options, name, None) for name in FILES}
    options_of: dict[Path, str] = {}
    for name, path in [(f"--{name}", path) for name, path in paths.items() if path is not None]:
        require_writable(name, path)
        first = options_of.setdefault(path.resolve(), name)
        require(first == name, name, path, f"is the file of {first}; name another one")


def _rate(name: str, text: str | None) -> float:
    """Parse an option in RATES: a number above 0; a latency may be 0."""
    option, (_, example) = f"--{name}", RATES[name]
    if text is None:
        raise UserError(f"{option}: is required; give a number such as {example}")
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{option}={text}: not a number; give one such as {example}") from None
    ok, bound = number > 0, "above 0"
    if name == "latency":
        ok, bound = number >= 0, "0 or more"
    why = f"must be finite and {bound}, such as {example}"
    require(ok and math.isfinite(number), option, text, why)
    return number


def _whole_numbers(name: str, text: str, least: int, most: int | None = None) -> list[int] | int:
    """Parse an integer, or a list of integers for the options in LISTS."""
    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(number.is_integer() for number in numbers):
            raise ValueError
    except ValueError:
        raise UserError(f"--{name}={text}: not integers; give numbers such as 1,64") from None
    require(min(numbers) >= least, f"--{name}", text, f"must be {least} or more")
    ok = most is None or max(numbers) <= most
    require(ok, f"--{name}", text, f"must be {most} or less")
    require(name in LISTS or len(numbers) == 1, f"--{name}", text, "takes one number")
    return [int(number) for number in numbers] if name in LISTS else int(numbers[0])


def _design(what: str, overrides: list[str]) -> Design:
    """Return a config for each combination of the values of the overrides. Raises UserError."""
    from minigpt.bench.measure import Design
    from minigpt.config.compose import composed_config
    from minigpt.config.overrides import combinations
    from minigpt.runtime import choose_runtime
    from minigpt.sweep.plan import labels

    refused = {**UNUSED, **BENCHMARKS[what].own}
    for key, value in map(parse_override, overrides):
        require(key not in refused, key, value, refused.get(key, ""))
    jobs = combinations(overrides)
    if len(jobs) > 1 and what not in SEVERAL_CONFIGS:
        why = f"bench {what} takes one config; give each key one value"
        raise UserError(f"{' '.join(overrides)}: {why}")
    names = labels(jobs) if len(jobs) > 1 else [" ".join(overrides) or "default"]
    configs = [(name, composed_config(job)) for name, job in zip(names, jobs, strict=True)]
    other = next((c.objective.name for _, c in configs if c.objective.name != CAUSAL), None)
    why = f"bench {what} measures causal models; use bench train for others"
    require(other is None or what in OF_EVERY_OBJECTIVE, "objective", other, why)
    trainer = configs[0][1].trainer
    why = "is measured by minigpt bench parallel; leave it out"
    require(trainer.parallel == "none", "trainer.parallel", trainer.parallel, why)
    device = "cpu"
    if BENCHMARKS[what].repeats is not None:  # else the device need not be here
        device = choose_runtime(trainer.device, trainer.precision).device
    return Design(overrides, configs, device)


def _write_page(path: Path, result: Result, about: str) -> None:
    """Write the table as Markdown, and the figure as a PNG next to it."""
    from minigpt.files import write_text
    from minigpt.report.tables import to_markdown

    path.parent.mkdir(parents=True, exist_ok=True)
    heading, _, body = to_markdown(result.table).partition("\n")
    lines = [heading.removeprefix("#"), "", about, body, *map(to_markdown, result.details)]
    if result.figure is not None:
        picture = path.with_suffix(".png")
        result.figure.savefig(picture, dpi=120)
        lines += [f"![{result.table.title}]({picture.name})", ""]
    write_text(path, "\n".join(lines))
