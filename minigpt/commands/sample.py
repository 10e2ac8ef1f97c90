"""`minigpt sample`: text from a trained run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.commands.options import Parser, add_quantize_argument, add_run_arguments
from minigpt.errors import UserError, one_line_if_out_of_memory

if TYPE_CHECKING:
    from minigpt.generate import Sampling


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
        "--json", action="store_true", help="a line of JSON a text: prompt, sample, seed, text"
    )
    parser.add_argument(
        "--context",
        metavar="N",
        help="most tokens the model sees (default: model.block_size, as in training), or all: "
        "more than it was trained on shows how its positions carry on",
    )
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N")
    parser.add_argument("--num-samples", type=int, default=1, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, metavar="T", help="default 1; 0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="the fewest that sum to P")
    parser.add_argument("--min-p", type=float, metavar="P", help="from P of the likeliest one's on")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: say less again"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    options = parser.parse_args(arguments)

    from minigpt.generate import Sampling

    clash = [
        f"--{name}"
        for name in ("temperature", "top-k", "top-p", "min-p")
        if getattr(options, name.replace("-", "_")) is not None
    ]
    if options.greedy and clash:
        raise UserError(f"--greedy: excludes {', '.join(clash)}; leave one of them out")
    for name in ("max_new_tokens", "num_samples"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag}={getattr(options, name)}: must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed={options.seed}: must be from 0 to 2^32 - 1")
    if "" in (options.prompt or []):
        raise UserError("--prompt=: empty; a model continues at least one character")
    prompts = [*(options.prompt or []), *_lines(options.prompts)] or ["\n"]
    temperature = 1.0 if options.temperature is None else options.temperature
    if "" in options.stop:
        raise UserError("--stop=: empty; give the text to end before")
    sampling = Sampling(
        0.0 if options.greedy else temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
    )

    with one_line_if_out_of_memory("use a smaller --context, or fewer prompts"):
        _sample(options, prompts, sampling)


def _sample(options: Namespace, prompts: list[str], sampling: Sampling) -> None:
    import torch

    from minigpt.files import to_json
    from minigpt.generate import generate, stop_at, stream_text
    from minigpt.load import load_run

    trained = load_run(options.run, options.checkpoint, options.device, options.set)
    if options.quantize is not None:
        from minigpt.quantize import quantized

        trained = quantized(trained, options.quantize)
    if trained.quantization is not None:
        print(trained.quantization.describe(), file=sys.stderr)
    context = _context(options.context, trained.config.model.block_size)
    encoded = [trained.tokenizer.encode(prompt) for prompt in prompts]
    for number in range(options.num_samples):
        # Sample k of a seed is the same however many are asked for.
        seed = options.seed + number
        generators = [torch.Generator(trained.compute.device).manual_seed(seed) for _ in prompts]
        rows = generate(
            trained.model,
            encoded,
            options.max_new_tokens,
            sampling,
            generators,
            trained.compute,
            context,
        )
        if len(prompts) == 1:
            texts = [stream_text(trained.tokenizer, (row[0] for row in rows))]
        else:  # they grow together, and are shown one after the other
            texts = [stream_text(trained.tokenizer, tokens) for tokens in zip(*rows, strict=True)]
        for prompt, text in zip(prompts, texts, strict=True):
            text = stop_at(text, options.stop)
            if options.json:
                found = {"prompt": prompt, "sample": number + 1, "seed": seed}
                print(to_json({**found, "text": "".join(text)}))
                continue
            if len(prompts) * options.num_samples > 1:
                print(f"--- {_title(prompt, prompts, number, options.num_samples)} ---")
            _show(prompt, text)


def _lines(file: str | None) -> list[str]:
    """The prompts of a file, a line each; empty lines are left out. Raises UserError."""
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompts={file}: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts={file}: not UTF-8 at byte {error.start}; convert it") from None
    prompts = [line for line in lines if line]
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
