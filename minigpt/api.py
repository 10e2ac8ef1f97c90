"""The Python API for notebooks: `load_run` and `runs`. See docs/api.md."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.config.pairs import flat
from minigpt.data.tokens import encode_documents
from minigpt.errors import UserError, require, require_one_of
from minigpt.evaluate.loss import Evaluation, evaluate
from minigpt.extras import install
from minigpt.files import matching_paths
from minigpt.inference.fill import Filled, Filler, require_filler
from minigpt.inference.generate import Context, Sampling, decoding_runtime
from minigpt.inference.text import TextGenerator, default_stops
from minigpt.objective.masked import MARK
from minigpt.report.runs import find_runs
from minigpt.run.load import TrainedRun

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LoadedRun(TrainedRun):
    """A trained run: `model`, `tokenizer`, `config`, and methods that use them."""

    @torch.no_grad()
    def logits(self, text: str) -> Tensor:
        """Return the next-token logits (t, n_vocab) after each of the t tokens of a text.

        Of an encoder (objective=masked), those of each token itself. A prefix model reads the text
        without a prefix. In fp32 on the CPU. Raises UserError if the text is empty, has characters
        that the tokenizer lacks, or has more tokens than the positional scheme has positions, and
        for an encoder-decoder, which also needs a source.
        """
        why = "reads a source beside the text; use generate, or minigpt fill"
        require(self.model.encoder is None, "objective", self.config.objective.name, why)
        require(text != "", "text", repr(text), "must not be empty")
        tokens, documents = encode_documents(text, self.config.data.separator, self.tokenizer)
        device = self.runtime.device
        ids = None if documents is None else documents[None].long().to(device)
        with self.model.evaluating(), decoding_runtime(self.model, self.runtime).autocast():
            logits = self.model(tokens[None].long().to(device), document_ids=ids)[0]
            return logits[:, : self.model.n_ordinary].float().cpu()

    def generate(
        self,
        prompt: str | None = None,
        max_tokens: int = 200,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 1,
        context: Context = None,
        stop: str | Sequence[str] | None = None,
    ) -> str:
        """Return sampled text that continues a prompt, without the prompt.

        The arguments are the options of `minigpt sample`. On a CPU the same seed with the same
        number of threads gives the same text.
        `prompt`: by default a newline, or the prompt of the run's own samples if the vocabulary has
        no newline. `stop`: generation ends before the first of these strings; by default
        the document separator of the run's data, if any. Raises UserError for a value out of
        range.
        """
        prompt = self.default_prompt if prompt is None else prompt
        require(prompt != "", "prompt", repr(prompt), "must not be empty")
        require(max_tokens >= 1, "max_tokens", max_tokens, "must be 1 or more")
        require(0 <= seed < 2**32, "seed", seed, "must be from 0 to 2^32 - 1")
        stops = default_stops(self) if stop is None else [stop] if isinstance(stop, str) else stop
        require("" not in stops, "stop", repr(stop), "must not be empty")
        ok = context in (None, "all") or (isinstance(context, int) and context >= 1)
        require(ok, "context", repr(context), 'must be 1 or more, "all" or None')
        with _python_arguments():
            sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
            tokens = [self.tokenizer.encode(prompt)]
            generator = TextGenerator(self, tokens, max_tokens, sampling, context, stops)
            (text,) = generator.texts(seed)
            return "".join(text.pieces)

    def fill(self, text: str, top: int = 5, max_tokens: int = 50, mark: str = MARK) -> Filled:
        """Return a text with each gap, a `mark`, filled, and the candidates of each gap.

        Of a run with objective=masked or denoise; see `Filler`. `top`: candidates of a masked
        token. `max_tokens`: in a gap at most. Raises UserError for a text without gaps, and for
        other objectives.
        """
        require(top >= 1, "top", top, "must be 1 or more")
        require(max_tokens >= 1, "max_tokens", max_tokens, "must be 1 or more")
        require(mark != "", "mark", repr(mark), "must not be empty")
        require_filler(self.objective, self.config.objective.name)
        parts = (self.model, self.objective, self.runtime)
        return Filler(*parts, mark, top, max_tokens).fill(text)

    def evaluate(self, split: str = "val", length: int | None = None) -> Evaluation:
        """Return the loss of one full pass over a split, "train" or "val".

        `length`: tokens per window, by default `model.block_size`. Raises UserError if the text
        is missing or has changed, or for more tokens than the positional scheme has positions.
        """
        require_one_of("split", split, ("train", "val"))
        require(length is None or length >= 1, "length", length, "must be 1 or more")
        data = getattr(self.tokens(), split)
        return evaluate(self.model, data, self.runtime, length, objective=self.objective)


def load_run(
    name: str | Path = "latest",
    checkpoint: str | None = None,
    device: str = "auto",
    changes: Sequence[str] = (),
) -> LoadedRun:
    """Load a run by path, or `latest` for the newest one below runs/. See `TrainedRun.load`.

    `changes`: overrides of `model.positional.*` or `model.backend.name` that the weights allow.
    Raises UserError if the run cannot be loaded.
    """
    with _python_arguments():
        return LoadedRun.load(str(name), checkpoint, device, changes)


def runs(names: str | Path | Sequence[str | Path] = "runs") -> pandas.DataFrame:
    """Return a table of all runs below some folders, one row each.

    `names`: a folder, a glob pattern such as "runs/**", `latest`, or a list of them. Columns: `run`
    (its path), `status`, `problems`, then the keys of config.yaml and of result.json, dotted. A run
    that is unfinished or damaged keeps its row, with `status`, `problems` and NaN for missing
    values. Raises UserError if no run is found or pandas is missing.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(f"runs: needs pandas; {install('pandas')}") from None
    collection = find_runs(_folders([names] if isinstance(names, str | Path) else names))
    rows: list[dict[str, Any]] = []
    for run in collection.runs:
        about = {"run": str(run.path), "status": run.status, "problems": "; ".join(run.problems)}
        rows.append({**about, **run.config, **flat(run.result), **about})
    started = {run.path.resolve() for run in collection.runs}
    missing = [job.path for job in collection.jobs if job.path.resolve() not in started]
    rows += [{"run": str(path), "status": "not started", "problems": ""} for path in missing]
    return pandas.DataFrame(rows)


def _folders(names: Sequence[str | Path]) -> list[str]:
    """Expand glob patterns to folders, without those inside another."""
    folders: list[str] = []
    for name in map(str, names):
        if not glob.has_magic(name) or Path(name).is_dir():
            folders.append(name)
            continue
        matches = [path for path in matching_paths(name) if path.is_dir()]
        require(bool(matches), "runs", name, "no folder matches this pattern")
        folders += [str(path) for path in matches if not {*path.parents} & {*matches}]
    return folders


@contextmanager
def _python_arguments() -> Iterator[None]:
    """Name arguments in errors as in Python: `--top-k=0: ...` becomes `top_k=0: ...`."""

    def argument(match: re.Match[str]) -> str:
        return "changes" if match[1] == "set" else match[1].replace("-", "_")

    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^--([a-z-]+)", argument, str(error))) from None
