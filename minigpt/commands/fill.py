"""`minigpt fill`: fill the gaps of a text with a trained run."""

from __future__ import annotations

import sys

from minigpt.commands.options import QUANTIZE, Parser, add_run_arguments, lines_of, set_threads
from minigpt.errors import UserError, one_line_if_out_of_memory, require
from minigpt.files import to_json

OPTIONS = {
    **QUANTIZE,
    "--text TEXT": r"a text with gaps, in which \n is a newline; repeatable",
    "--texts FILE": "a UTF-8 file with one text per line; \\n in it is a newline",
    "--mark MARK": "what stands for a gap (default: [MASK])",
    "--top N": "candidates for each gap, of objective=masked (default: 5)",
    "--max-new-tokens N": "tokens in a gap at most, of objective=denoise (default: 50)",
    "--json": "one line of JSON per text: text, filled, gaps",
}
DEFAULTS = {"mark": "[MASK]", "top": 5, "max_new_tokens": 50}
UNUSED = {"masked": "max_new_tokens", "denoise": "top"}  # the option of the other objective


def main(arguments: list[str]) -> None:
    """Print each text with its gaps filled, and the candidates of each gap."""
    parser = Parser(
        "fill",
        "Fill the gaps of a text. A run with objective=masked fills each with one token, and\n"
        "prints the likeliest ones; a run with objective=denoise fills each with a span.",
        [
            'minigpt fill latest --text "To be or [MASK]ot to be"',
            "minigpt fill runs/NAME --texts gaps.txt --top 3 --json",
        ],
    )
    add_run_arguments(parser)
    parser.add_options(OPTIONS, text="append", **DEFAULTS)
    options = parser.parse(arguments)
    for name in ("top", "max_new_tokens"):
        flag, value = "--" + name.replace("_", "-"), getattr(options, name)
        require(value >= 1, flag, value, "must be 1 or more")
    require(options.mark != "", "--mark", "", "empty; give what stands for a gap")
    from minigpt.data.corpus import require_valid_escapes, unescape

    for text in options.text or []:
        require_valid_escapes("--text", text)
    texts = [("--text", unescape(text)) for text in options.text or []]
    texts += lines_of("--texts", options.texts)
    if not texts:
        raise UserError('--text: give a text with gaps, such as --text "To be or [MASK]ot to be"')

    from rich.table import Table

    from minigpt.console import PipeConsole, Progress
    from minigpt.inference.fill import Filler, require_filler
    from minigpt.inference.quantize import quantized
    from minigpt.run.load import TrainedRun

    set_threads(options)
    with Progress("loading"):
        trained = TrainedRun.load(options.run, options.checkpoint, options.device, options.set)
        name = trained.config.objective.name
        require_filler(trained.objective, name)
        unused = UNUSED.get(name)
        if unused is not None and getattr(options, unused) != DEFAULTS[unused]:
            flag = "--" + unused.replace("_", "-")
            raise UserError(f"{flag}: has no effect with objective={name}; leave it out")
        if options.quantize is not None:
            trained, quantization = quantized(trained, options.quantize)
            print(quantization.describe(), file=sys.stderr)
    parts = (trained.model, trained.objective, trained.runtime)
    filler = Filler(*parts, options.mark, options.top, options.max_new_tokens)
    console = PipeConsole(highlight=False)
    for key, text in texts:
        try:
            with one_line_if_out_of_memory("fill a shorter text"):
                filled = filler.fill(text)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if options.json:
            gaps = [[vars(candidate) for candidate in gap] for gap in filled.gaps]
            print(to_json({"text": text, "filled": filled.text, "gaps": gaps}))
            continue
        print(filled.text)
        table = Table("gap", "text", "probability")
        for number, gap in enumerate(filled.gaps, 1):
            for candidate in gap:
                table.add_row(str(number), repr(candidate.text), f"{candidate.probability:.3f}")
        console.print(table)
