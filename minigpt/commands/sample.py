"""`minigpt sample`: text from a trained run."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser, add_quantize_argument, add_run_arguments
from minigpt.errors import UserError, one_line_if_out_of_memory

if TYPE_CHECKING:
    import torch

    from minigpt.inference.beam import BeamSearch
    from minigpt.inference.generate import Sampling
    from minigpt.inference.speculative import Draft, Tally
    from minigpt.run.load import TrainedRun

DRAWING = ("temperature", "top_k", "top_p", "min_p")
EXCLUDES = {"beams": (*DRAWING, "greedy", "num_samples", "seed", "draft"), "greedy": DRAWING}
NEEDS = {"length_penalty": "beams", "draft_tokens": "draft"}
DRAFT_TOKENS = 4


def main(arguments: list[str]) -> None:
    """Stream sampled text to standard output."""
    parser = Parser(
        "sample",
        "Write text with a trained run. The same seed gives the same text.",
        [
            "minigpt sample latest --prompt ROMEO:",
            "minigpt sample latest --greedy --max-new-tokens 100",
            "minigpt sample runs/NAME --num-samples 3 --temperature 0.8 --top-p 0.95 --seed 7",
            "minigpt sample latest --prompt ROMEO: --prompt 'First Citizen:' --context 512",
            "minigpt sample latest --quantize int8",
            "minigpt sample latest --beams 5 --stop '.' --length-penalty 0.6",
            "minigpt sample runs/BIG --draft runs/SMALL --draft-tokens 6",
        ],
    )
    add_run_arguments(parser)
    add_quantize_argument(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        help="text to go on from (default: a line end); several are computed together",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="a UTF-8 file with a prompt on each line, added to these"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="a line of JSON a text: prompt, sample, seed, text and what else is known",
    )
    parser.add_argument(
        "--context",
        metavar="N",
        help="most tokens the model sees (default: model.block_size, as in training), or all: "
        "more than it was trained on shows how its positions carry on",
    )
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N")
    parser.add_argument("--num-samples", type=int, default=1, metavar="S")
    parser.add_argument("--seed", type=int, default=1, help="of the first sample of every prompt")
    parser.add_argument("--temperature", type=float, metavar="T", help="default 1; 0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="the fewest that sum to P")
    parser.add_argument("--min-p", type=float, metavar="P", help="from P of the likeliest one's on")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: say less again"
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help=r"end before TEXT, in which \n is a line end; repeatable (default: what the "
        "documents of the run end with, where it has any)",
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument(
        "--beams", type=int, metavar="N", help="search for the likeliest text, keeping N at a time"
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="A",
        help="beams that end at a --stop are compared by log-probability / tokens^A (default: 1)",
    )
    parser.add_argument(
        "--draft",
        metavar="RUN2",
        help="let a smaller run with the same tokenizer propose tokens, and check several at once: "
        "the same distribution, though a seed gives another text",
    )
    parser.add_argument(
        "--draft-tokens", type=int, metavar="K", help=f"proposed at a time ({DRAFT_TOKENS})"
    )
    options = parser.parse_args(arguments)
    _require_compatible(options, parser)
    for name in ("max_new_tokens", "num_samples", "draft_tokens"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UserError(f"{_flag(name)}={number}: must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed}: must be from 0 to 2^32 - 1")
    if "" in (options.prompt or []):
        raise UserError("--prompt=: empty; a model continues at least one character")
    given = [("--prompt", prompt) for prompt in options.prompt or []]
    prompts = [*given, *_lines(options.prompts)] or [("--prompt", "\n")]
    _require_stops(options.stop or [])

    from minigpt.inference.beam import BeamSearch
    from minigpt.inference.generate import Sampling

    temperature = 1.0 if options.temperature is None else options.temperature
    sampling = Sampling(
        0.0 if options.greedy else temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
    )
    search = None
    if options.beams is not None:
        penalty = 1.0 if options.length_penalty is None else options.length_penalty
        search = BeamSearch(options.beams, penalty, options.repetition_penalty)

    with one_line_if_out_of_memory("use a smaller --context, or fewer prompts or --beams"):
        _sample(options, prompts, sampling, search)


def _require_compatible(options: Namespace, parser: Parser) -> None:
    """Raise UserError for options that exclude or need each other."""

    def given(name: str) -> bool:
        return getattr(options, name) != parser.get_default(name)

    for name, excluded in EXCLUDES.items():
        clash = [_flag(other) for other in excluded if given(other)]
        if given(name) and clash:
            raise UserError(f"{_flag(name)}: excludes {', '.join(clash)}; leave one of them out")
    if options.beams == 1 and given("length_penalty"):
        raise UserError("--length-penalty: compares beams, and --beams=1 keeps one; use 2 or more")
    for name, needed in NEEDS.items():
        if given(name) and not given(needed):
            raise UserError(f"{_flag(name)}: needs {_flag(needed)}; give that too")


def _require_stops(written: list[str]) -> None:
    from minigpt.data.corpus import require_escapes

    for stop in written:
        if stop == "":
            raise UserError("--stop=: empty; give the text to end before")
        require_escapes("--stop", stop)


def _stops(written: list[str] | None, trained: TrainedRun) -> list[str]:
    """What ends a text: as asked for, or what the run's documents end with."""
    from minigpt.data.corpus import unescaped

    if written is not None:
        return [unescaped(stop) for stop in written]
    separator = trained.config.data.separator
    return [] if separator is None else [separator]


def _encoded(key: str, text: str, trained: TrainedRun) -> list[int]:
    try:
        return trained.tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sample(
    options: Namespace,
    named: list[tuple[str, str]],
    sampling: Sampling,
    search: BeamSearch | None,
) -> None:
    """Write on from prompts, each with the option it is from."""
    import torch

    from minigpt.api import load_run
    from minigpt.files import to_json
    from minigpt.inference.generate import stop_at, stream_text

    trained = load_run(options.run, options.checkpoint, options.device, options.set)
    stops = _stops(options.stop, trained)
    if options.length_penalty is not None and not stops:
        raise UserError("--length-penalty: compares texts that end at a --stop; give one")
    if options.quantize is not None:
        from minigpt.inference.quantize import quantized

        trained, quantization = quantized(trained, options.quantize)
        print(quantization.describe(), file=sys.stderr)
    context = _context(options.context, trained.config.model.block_size)
    prompts = [prompt for _, prompt in named]
    ask = Ask(
        trained,
        [_encoded(*pair, trained) for pair in named],
        options.max_new_tokens,
        sampling,
        context,
    )
    draft = None if options.draft is None else _load_draft(options, trained)
    tallies: list[Tally] = []
    for number in range(options.num_samples):
        # Sample k of a seed is the same however many are asked for.
        seed = options.seed + number
        generators = [torch.Generator(trained.runtime.device).manual_seed(seed) for _ in prompts]
        if search is not None:
            texts = _searched(ask, search, stops)
        elif draft is not None:
            texts = _drafted(ask, draft, generators, tallies)
        else:
            texts = _drawn(ask, generators)
        for prompt, text in zip(prompts, texts, strict=True):
            pieces = stop_at(stream_text(trained.tokenizer, text.tokens), stops)
            if options.json:
                drawn = {} if search is not None else {"sample": number + 1, "seed": seed}
                found = {"prompt": prompt, **drawn, "text": "".join(pieces)}
                print(to_json({**found, **text.facts()}))
                continue
            if len(prompts) * options.num_samples > 1:
                print(f"--- {_title(prompt, prompts, number, options.num_samples)} ---")
            _show(prompt, pieces)
    if tallies:
        _report(ask, tallies, time_plain=len(tallies) == 1 and not options.json)


@dataclass(frozen=True)
class Ask:
    """What to write, and how the next token is chosen."""

    trained: TrainedRun
    prompts: list[list[int]]
    n_tokens: int
    sampling: Sampling
    context: int | None


@dataclass(frozen=True)
class Text:
    """A text's new tokens as they come, and what else is known of it when they have come."""

    tokens: Iterable[int]
    facts: Callable[[], dict[str, Any]] = dict


def _drawn(ask: Ask, generators: list[torch.Generator]) -> Iterator[Text]:
    """Token by token; several prompts grow together, and are shown one after the other."""
    from minigpt.inference.generate import generate

    rows = generate(
        ask.trained.model,
        ask.prompts,
        ask.n_tokens,
        ask.sampling,
        generators,
        ask.trained.runtime,
        ask.context,
    )
    if len(ask.prompts) == 1:
        yield Text(row[0] for row in rows)
    else:
        yield from map(Text, zip(*rows, strict=True))


def _searched(ask: Ask, search: BeamSearch, stops: list[str]) -> Iterator[Text]:
    """The best text of a beam search for each prompt."""
    from minigpt.inference.beam import beam_search

    trained = ask.trained
    ends = [stop.encode("utf-8", errors="surrogatepass") for stop in stops]
    longest = max(map(len, ends), default=1)  # bytes, and a token has one or more

    def ended(tokens: list[int]) -> bool:
        tail = b"".join(map(trained.tokenizer.token_bytes, tokens[-longest:]))
        return any(end in tail for end in ends)

    for prompt in ask.prompts:
        found = beam_search(
            trained.model, prompt, ask.n_tokens, search, ended, trained.runtime, ask.context
        )
        facts = {"log_probability": found.log_probability, "score": found.score}
        yield Text(found.tokens, lambda facts=facts: facts)


def _load_draft(options: Namespace, trained: TrainedRun) -> Draft:
    """The run that proposes. Raises UserError where its tokens are others."""
    from minigpt.api import load_run
    from minigpt.inference.speculative import Draft

    try:
        other = load_run(options.draft, None, options.device)
    except UserError as error:
        raise UserError(f"--draft: {error}") from None
    if other.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise UserError(
            f"--draft={other.run.path}: has another tokenizer than {trained.run.path}; "
            "use a draft trained with the same one, on the same text"
        )
    context = _context(options.context, other.config.model.block_size)
    limit = other.model.positional.max_length
    if limit is not None:  # it may see less: that costs speed alone
        context = limit if context is None else min(context, limit)
    n_tokens = DRAFT_TOKENS if options.draft_tokens is None else options.draft_tokens
    return Draft(other.model, n_tokens, context)


def _drafted(
    ask: Ask, draft: Draft, generators: list[torch.Generator], tallies: list[Tally]
) -> Iterator[Text]:
    """Drawn with a draft, prompt by prompt; adds a tally of each to `tallies`."""
    from minigpt.inference.speculative import Tally, speculate

    for prompt, generator in zip(ask.prompts, generators, strict=True):
        tallies.append(tally := Tally())
        tokens = speculate(
            ask.trained.model,
            draft,
            prompt,
            ask.n_tokens,
            ask.sampling,
            generator,
            ask.trained.runtime,
            ask.context,
            tally,
        )
        yield Text(tokens, lambda tally=tally: {"acceptance_rate": tally.acceptance_rate})


def _report(ask: Ask, tallies: list[Tally], time_plain: bool) -> None:
    """Say on standard error what the draft was good for."""
    proposed, accepted, tokens, passes = (
        sum(getattr(tally, name) for tally in tallies)
        for name in ("proposed", "accepted", "tokens", "passes")
    )
    share = f" ({accepted / proposed:.0%})" if proposed else ""
    n_timed, drafted = tallies[0].timed
    then = f"; timing {n_timed} tokens without it ..." if time_plain else ""
    print(
        f"draft: {accepted} of {proposed} proposed tokens accepted{share}, "
        f"{tokens / passes:.2f} tokens a pass of the model{then}",
        file=sys.stderr,
        flush=True,
    )
    if time_plain:
        plain = _plain_seconds(ask, n_timed)
        print(
            f"draft: {plain / drafted:.2f} times as fast as without it "
            f"({drafted:.2f} s, and {plain:.2f} s without)",
            file=sys.stderr,
        )


def _plain_seconds(ask: Ask, n_tokens: int) -> float:
    """How long a text of the only prompt takes without a draft, after the prompt is read."""
    import torch

    generator = torch.Generator(ask.trained.runtime.device).manual_seed(0)
    (text,) = _drawn(replace(ask, n_tokens=n_tokens), [generator])
    start = time.perf_counter()
    for _ in text.tokens:
        pass
    return time.perf_counter() - start


def _lines(file: str | None) -> list[tuple[str, str]]:
    """The prompts of a file, a line each, with its name and number; empty lines are left out.

    Raises UserError.
    """
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompts={file}: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts={file}: not UTF-8 at byte {error.start}; convert it") from None
    prompts = [
        (f"--prompts={file}: line {number}", line) for number, line in enumerate(lines, 1) if line
    ]
    if not prompts:
        raise UserError(f"--prompts={file}: no line holds a prompt; write one a line")
    return prompts


def _context(text: str | None, block_size: int) -> int | None:
    """The most tokens a model sees; None for all."""
    if text is None:
        return block_size
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--context={text}: must be a whole number of 1 or more, or all")
    return int(text)


def _title(prompt: str, prompts: list[str], number: int, num_samples: int) -> str:
    of_prompt = f" of {prompt!r}" if len(prompts) > 1 else ""
    return f"sample {number + 1} of {num_samples}{of_prompt}"


def _show(prompt: str, text: Iterator[str]) -> None:
    sys.stdout.write(prompt)
    for piece in text:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
