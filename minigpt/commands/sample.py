"""`minigpt sample`: generate text with a trained run."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from minigpt.commands.options import QUANTIZE, Parser, add_run_arguments, lines_of, set_threads
from minigpt.errors import UserError, one_line_if_out_of_memory, require

if TYPE_CHECKING:
    from minigpt.inference.text import Continuation, TextGenerator
    from minigpt.run.load import TrainedRun

TRUNCATION = ("temperature", "top_k", "top_p", "min_p")
EXCLUDES = {"beams": (*TRUNCATION, "greedy", "num_samples", "seed", "draft"), "greedy": TRUNCATION}
NEEDS = {"length_penalty": "beams", "draft_tokens": "draft"}
OPTIONS = {
    **QUANTIZE,
    "--prompt PROMPT": r"text to continue, in which \n is a newline (default: a newline, or the "
    "prompt of the run's own samples if its vocabulary has none); several form one batch",
    "--prompts FILE": "a UTF-8 file with one prompt per line; \\n in it is a newline",
    "--json": "one line of JSON per text: prompt, sample, seed, text, and its scores if any",
    "--context N": "maximum context in tokens (default: model.block_size, as in training), "
    "or all: more tests how its positions extrapolate",
    "--max-new-tokens N": "maximum number of new tokens per sample (default: 500)",
    "--num-samples S": "texts per prompt",
    "--seed SEED": "seed of each prompt's first sample; the next sample uses seed + 1",
    "--stop TEXT": r"end before TEXT, in which \n is a newline; repeatable (default: the document "
    "separator of the run's data, if any)",
    "--temperature T": "sampling temperature (default: 1); 0 is greedy",
    "--top-k K": "sample from the K most likely tokens",
    "--top-p P": "sample from the smallest set of tokens with total probability P",
    "--min-p P": "sample from tokens with at least P times the highest probability",
    "--repetition-penalty R": "above 1: tokens of the prompt and the text so far become less "
    "likely",
    "--greedy": "always the most likely token",
    "--beams N": "beam search with N beams instead of sampling",
    "--length-penalty A": "beam search: maximize log-probability / tokens^A of texts that end at a "
    "--stop (default: 1)",
    "--draft RUN2": "speculative decoding with a smaller run that has the same tokenizer: the "
    "distribution stays the same, but a seed gives another text",
    "--draft-tokens K": "tokens the draft proposes at a time (default: 4)",
}
REPEATABLE = dict.fromkeys(("prompt", "stop"), "append")
INTEGERS = dict.fromkeys(("top_k", "beams", "draft_tokens"), int)
NUMBERS = dict.fromkeys(("temperature", "top_p", "min_p", "length_penalty"), float)
DEFAULTS = {"max_new_tokens": 500, "num_samples": 1, "seed": 1, "repetition_penalty": 1.0}


def main(arguments: list[str]) -> None:
    """Stream generated text to standard output."""
    parser = Parser(
        "sample",
        "Generate text with a trained run. On a CPU the same seed with the same number of threads\n"
        "gives the same text.",
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
    parser.add_options(OPTIONS, **REPEATABLE, **INTEGERS, **NUMBERS, **DEFAULTS)
    options = parser.parse(arguments)
    _require_compatible(options, parser)
    _require_valid(options)
    from minigpt.console import Progress
    from minigpt.data.corpus import unescape

    prompts = [("--prompt", unescape(prompt)) for prompt in options.prompt or []]
    prompts += lines_of("--prompts", options.prompts)
    with one_line_if_out_of_memory("use a smaller --context, or fewer prompts or --beams"):
        with Progress("loading"):
            generator, texts = _text_generator(options, prompts)
        _print_texts(generator, texts, options)


def _require_compatible(options: Namespace, parser: Parser) -> None:
    def given(name: str) -> bool:
        return getattr(options, name) != parser.get_default(name)

    for name, excluded in EXCLUDES.items():
        others = [_flag(other) for other in excluded if given(other)]
        if given(name) and others:
            why = f"cannot be combined with {', '.join(others)}; leave one of them out"
            raise UserError(f"{_flag(name)}: {why}")
    if options.beams == 1 and given("length_penalty"):
        raise UserError("--length-penalty: needs several beams to compare; use --beams=2 or more")
    for name, needed in NEEDS.items():
        if given(name) and not given(needed):
            raise UserError(f"{_flag(name)}: needs {_flag(needed)}")


def _require_valid(options: Namespace) -> None:
    from minigpt.data.corpus import require_valid_escapes

    for name in ("max_new_tokens", "num_samples", "draft_tokens"):
        number = getattr(options, name)
        require(number is None or number >= 1, _flag(name), number, "must be 1 or more")
    require(0 <= options.seed < 2**32, "--seed", options.seed, "must be from 0 to 2^32 - 1")
    require("" not in (options.prompt or []), "--prompt", "", "empty; give at least one character")
    for stop in options.stop or []:
        require(stop != "", "--stop", "", "empty; give the text to end before")
    for flag, texts in (("--stop", options.stop), ("--prompt", options.prompt)):
        for text in texts or []:
            require_valid_escapes(flag, text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text_generator(
    options: Namespace, prompts: list[tuple[str, str]]
) -> tuple[TextGenerator, list[str]]:
    """Load the run and its draft, and encode the prompts, each given with its option.

    Returns the generator and the prompts, by default that of the run. Raises UserError for a value
    out of range before it loads the run.
    """
    from minigpt.data.corpus import unescape
    from minigpt.inference.beam import BeamSearch
    from minigpt.inference.generate import Sampling
    from minigpt.inference.quantize import quantized
    from minigpt.inference.speculative import DRAFT_TOKENS
    from minigpt.inference.text import TextGenerator, default_stops, load_draft
    from minigpt.run.load import TrainedRun

    context, search, draft = options.context, None, None
    if context not in (None, "all"):
        ok = context.isdecimal() and int(context) >= 1
        require(ok, "--context", context, "must be an integer of 1 or more, or all")
        context = int(context)
    temperature = 1.0 if options.temperature is None else options.temperature
    truncation = (options.top_k, options.top_p, options.min_p)
    penalty = options.repetition_penalty
    sampling = Sampling(0.0 if options.greedy else temperature, *truncation, penalty)
    if options.beams is not None:
        length_penalty = 1.0 if options.length_penalty is None else options.length_penalty
        search = BeamSearch(options.beams, length_penalty, penalty)
    set_threads(options)
    trained = TrainedRun.load(options.run, options.checkpoint, options.device, options.set)
    stops = default_stops(trained) if options.stop is None else list(map(unescape, options.stop))
    if options.length_penalty is not None and not stops:
        raise UserError("--length-penalty: compares texts that end at a stop string; give --stop")
    if options.quantize is not None:
        trained, quantization = quantized(trained, options.quantize)
        print(quantization.describe(), file=sys.stderr)
    prompts = prompts or [("--prompt", trained.default_prompt)]
    tokens = [_encode(key, text, trained) for key, text in prompts]
    if options.draft is not None:
        draft = load_draft(options.draft, trained, options.draft_tokens or DRAFT_TOKENS, context)
    new_tokens = options.max_new_tokens
    generator = TextGenerator(trained, tokens, new_tokens, sampling, context, stops, search, draft)
    return generator, [text for _, text in prompts]


def _encode(key: str, text: str, trained: TrainedRun) -> list[int]:
    try:
        return trained.tokenizer.encode(text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _print_texts(generator: TextGenerator, prompts: list[str], options: Namespace) -> None:
    """Print all samples of all prompts; sample k has the seed `options.seed` + k.

    Progress is shown on stderr, unless stdout is a terminal or the same file.
    """
    from minigpt.console import Progress

    progress = Progress("sampling")
    generator.progress = progress.advance
    with nullcontext() if _stdout_is_seen() else progress:
        for number in range(options.num_samples):
            progress.begin(f"sample {number + 1} of {options.num_samples}", generator.n_steps)
            texts = generator.texts(options.seed + number)
            for prompt, text in zip(prompts, texts, strict=True):
                _print_text(generator, prompt, text, number, options)
    if generator.statistics:
        _print_draft_statistics(generator, measure_speedup=not options.json)


def _stdout_is_seen() -> bool:
    """Return whether stdout is a terminal or the same file as stderr."""
    with suppress(OSError, ValueError):  # closed, or no file
        output, errors = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
        return sys.stdout.isatty() or os.path.samestat(output, errors)
    return False


def _print_text(
    generator: TextGenerator, prompt: str, text: Continuation, number: int, options: Namespace
) -> None:
    """Print a text, as JSON with `--json`, else with a heading if there are several."""
    from minigpt.files import to_json

    if options.json:
        sample = {"sample": number + 1, "seed": options.seed + number}
        values = {"prompt": prompt, **({} if generator.search else sample)}
        print(to_json({**values, "text": "".join(text.pieces), **text.numbers()}))
        return
    n_prompts = len(generator.prompts)
    if n_prompts * options.num_samples > 1:
        of_prompt = f" of {prompt!r}" if n_prompts > 1 else ""
        print(f"--- sample {number + 1} of {options.num_samples}{of_prompt} ---")
    print(prompt, end="")
    for piece in text.pieces:
        print(piece, end="", flush=True)
    print()


def _print_draft_statistics(generator: TextGenerator, measure_speedup: bool) -> None:
    """Print the acceptance rate to stderr, and the speed-up if there is a single text."""
    from minigpt.console import Progress

    each = generator.statistics
    proposed, accepted = sum(one.proposed for one in each), sum(one.accepted for one in each)
    per_pass = sum(one.tokens for one in each) / sum(one.passes for one in each)
    rate = f" ({accepted / proposed:.0%})" if proposed else ""
    measure_speedup = measure_speedup and len(each) == 1
    n_timed, drafted = each[0].timed
    timing = f"; timing {n_timed} tokens without it ..." if measure_speedup else ""
    acceptance = f"{accepted} of {proposed} proposed tokens accepted{rate}"
    speed = f"{per_pass:.2f} tokens per forward pass of the model{timing}"
    print(f"draft: {acceptance}, {speed}", file=sys.stderr, flush=True)
    if measure_speedup:
        with Progress("timing without the draft"):
            plain = generator.seconds_without_draft(n_timed)
        seconds = f"({drafted:.2f} s, and {plain:.2f} s without)"
        times = f"{plain / drafted:.2f} times as fast as without it"
        print(f"draft: {times} {seconds}", file=sys.stderr)
