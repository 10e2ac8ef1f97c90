"""`minigpt sample`: text from a trained run."""

from __future__ import annotations

import sys

from minigpt.commands.options import Parser, add_run_arguments
from minigpt.errors import UserError


def main(arguments: list[str]) -> None:
    """Stream sampled text to standard output."""
    parser = Parser(
        "sample",
        "Write text with a trained run. The same seed gives the same text.",
        [
            "minigpt sample latest --prompt ROMEO:",
            "minigpt sample latest --greedy --max-new-tokens 100",
            "minigpt sample runs/NAME --num-samples 3 --temperature 0.8 --top-p 0.95 --seed 7",
        ],
    )
    add_run_arguments(parser)
    parser.add_argument("--prompt", default="\n", help="text to go on from (default: a line end)")
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N")
    parser.add_argument("--num-samples", type=int, default=1, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, metavar="T", help="default 1; 0 is greedy")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="the fewest that sum to P")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    options = parser.parse_args(arguments)

    import torch

    from minigpt.generate import Sampling, generate, stream_text
    from minigpt.load import load_run

    clash = [
        f"--{name}"
        for name in ("temperature", "top-k", "top-p")
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
    if not options.prompt:
        raise UserError("--prompt=: empty; a model continues at least one character")
    temperature = 1.0 if options.temperature is None else options.temperature
    sampling = Sampling(0.0 if options.greedy else temperature, options.top_k, options.top_p)

    trained = load_run(options.run, options.checkpoint, options.device)
    prompt = trained.tokenizer.encode(options.prompt)
    generator = torch.Generator(trained.compute.device)
    for number in range(options.num_samples):
        if options.num_samples > 1:
            print(f"--- sample {number + 1} of {options.num_samples} ---")
        # Sample k of a seed is the same however many are asked for.
        generator.manual_seed(options.seed + number)
        tokens = generate(
            trained.model, prompt, options.max_new_tokens, sampling, generator, trained.compute
        )
        sys.stdout.write(options.prompt)
        for text in stream_text(trained.tokenizer, tokens):
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
