"""Progress of a run: a live bar in a terminal, plain lines in a pipe or file."""

from __future__ import annotations

import io
import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel

from minigpt.console import Advance, LiveView, bar, described, duration, time_left
from minigpt.evaluate.loss import Evaluation
from minigpt.loss_of import EVERY_TOKEN, tokens_note
from minigpt.objective.masked import MARK
from minigpt.run.directory import RunDirectory
from minigpt.train.setup import Setup

REFRESHES_PER_SECOND = 5
LOSS_SECONDS = 10.0  # between losses on display; shorter than console.SILENCE_SECONDS


def trained_part(counts: Mapping[str, int]) -> str:
    """Return how many parameters are trained, and the memory of AdamW's two moments in fp32."""
    trained, total = counts["trained"], counts["total"]
    of_all = f"{8 * trained / 1e6:.3g} MB of optimizer states instead of {8 * total / 1e6:.3g}"
    return f"{trained:,} of {total:,} parameters are trained, {of_all}"


class Display:
    """Shows the progress of a run. The bar below the lines is shown only in a terminal.

    `quiet`: show nothing.
    """

    def __init__(self, max_steps: int, quiet: bool = False) -> None:
        self.max_steps = max_steps
        stream = io.StringIO() if quiet else None
        self.view = LiveView(
            self._bar, REFRESHES_PER_SECOND, status=self._line_of_step, stream=stream
        )
        self.line = self.view.line
        self.started: float | None = None
        self.first_step = self.now = 0
        self.loss_shown: float | None = None
        self.status = self.activity = ""
        self.use = "sample "  # the command, with its options, that uses the run

    def start(
        self, setup: Setup, run: RunDirectory, manifest: dict[str, Any], notices: dict[str, str]
    ) -> None:
        """Print the run's settings and `notices`, and start the bar."""
        config, state = setup.config, setup.state
        if not setup.objective.can_continue:
            self.use = f"fill --text '{MARK}' "
        model, counts = config.model, state.model.parameter_counts()
        packed = config.data.separator is not None
        documents = f" in {sum(manifest['documents'].values()):,} documents" if packed else ""
        sparse = counts["active"] < counts["total"]
        active = f", {counts['active']:,} of them active" if sparse else ""
        facts = {
            "model": f"{model.name}: {model.n_layer} layers, {model.n_head} heads, width "
            f"{model.n_embd}, context {model.block_size}, {counts['total']:,} parameters{active}",
            "data": f"{config.data.name}{documents}, {config.tokenizer.name} tokenizer (vocabulary "
            f"{manifest['vocabulary']:,}): {manifest['tokens']['train']:,} training tokens, "
            f"{manifest['tokens']['val']:,} validation; batch "
            f"{config.trainer.batch_size} x {model.block_size}",
            "device": setup.runtime.describe(),
            "design": f"{model.positional.name} positions, norm={model.norm.placement} "
            f"({model.norm.kind}), {model.embedding.name} head",
            "ffn": described(model.ffn),
            "attention": f"{described(model.attention)}; {setup.backend}",
            "steps": setup.compilation.describe(),
            "run": str(run.path),
        }
        if setup.objective.loss_of != EVERY_TOKEN:
            losses = f"losses of {setup.objective.loss_of}"
            facts["objective"] = f"{described(config.objective)}; {losses}"
        if config.init is not None:
            facts["init"] = config.init
        if "trained" in counts:
            facts["adapter"] = f"{described(config.adapter)}; {trained_part(counts)}"
        if config.trainer.parallel != "none":
            facts["processes"] = f"{setup.runtime.ranks.size} ({config.trainer.parallel})"
        if setup.runtime.device == "cuda":
            facts["graph"] = setup.graph
        for name, fact in (facts | notices).items():
            self.line(f"{name:<10} {fact}")
        warmup = config.schedule.warmup(self.max_steps)
        self.vocabulary = manifest["vocabulary"]
        if self.max_steps == 0:
            self.line("trainer    max_steps=0: trains nothing; evaluates and saves initial weights")
        elif warmup >= self.max_steps:
            self.line(f"schedule   warm-up ({warmup} steps) covers all {self.max_steps} steps")
        step = self.first_step = self.now = state.progress.step
        if step:
            self.line(f"resumed at step {step}")
        self.started = time.monotonic()
        self.view.__enter__()

    def stop(self) -> None:
        """Stop the bar and restore the terminal."""
        self.view.__exit__()

    def step(self, step: int) -> None:
        """Count a step. The bar and the lines show it later, since most steps are short."""
        self.now = step

    @property
    def wants_loss(self) -> bool:
        """Whether to show the loss of this step: of the first, and if it was not shown lately."""
        if self.started is None:
            return False
        return self.loss_shown is None or time.monotonic() > self.loss_shown + LOSS_SECONDS

    def train(self, step: int, loss: float, speed: float) -> None:
        """Print the training loss and the speed in tokens/s, or show them in the bar."""
        self.loss_shown = time.monotonic()
        self.status = f"train loss {loss:.4f} nats/token  {speed:,.0f} tokens/s"
        if not self.view.console.is_terminal:
            self.line(f"step {step}/{self.max_steps}  {self.status}  {self._time_left()}".rstrip())

    @contextmanager
    def working(self, activity: str, total: float) -> Iterator[Advance]:
        """Show an activity other than training steps. Yields a function that adds work done."""
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            self.activity = f"{activity}, {done / total:.0%}"

        self.activity = activity
        try:
            yield advance
        finally:
            self.activity = ""

    @contextmanager
    def preparing(self, activity: str) -> Iterator[None]:
        """Show an activity before the first step, which the estimate of the time left excludes."""
        with self.working(activity, math.inf):
            yield
        self.started = time.monotonic()

    def _time_left(self) -> str:
        done = self.now - self.first_step
        if self.started is None or done <= 0:
            return ""
        seconds = time.monotonic() - self.started
        return time_left(seconds / done * (self.max_steps - self.now))

    def _line_of_step(self) -> str:
        assert self.started is not None
        waited = f"{duration(time.monotonic() - self.started)} so far"
        times = self._time_left() or waited
        parts = (f"step {self.now}/{self.max_steps}", self.activity, times)
        return "  ".join(part for part in parts if part)

    def _bar(self) -> RenderableType:
        text = "  ".join(part for part in (self.activity or self.status, self._time_left()) if part)
        return bar(f"step {self.now}/{self.max_steps}", self.now, self.max_steps, text)

    def evaluation(
        self, step: int, val: Evaluation, best: bool, by_weights: Mapping[str, float]
    ) -> None:
        """Print a validation loss, the lowest of `by_weights` if there are two. `best`: so far."""
        notes = ["best"] if best else []
        notes += [f"{name} {loss:.4f}" for name, loss in by_weights.items()]
        guessing = math.log(self.vocabulary)
        if val.loss > guessing:
            notes.append(f"above guessing (ln {self.vocabulary} = {guessing:.4f})")
        self.line(
            f"step {step}/{self.max_steps}  val loss {val.loss:.4f} nats/token"
            f"{tokens_note(val.loss_of)}  perplexity {val.perplexity:.3f}  bits/byte "
            f"{val.bits_per_byte:.4f}  {', '.join(notes)}".rstrip()
        )

    def sample(self, step: int, text: str) -> None:
        """Print sampled text."""
        if self.view.console.is_terminal:
            self.view.console.print(
                Panel(escape(text), title=f"sample at step {step}", style="dim")
            )
        else:
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            self.line(f"step {step}/{self.max_steps}  sample:\n{indented}")

    def stopped(self, number: int, run: RunDirectory, result: dict[str, Any]) -> None:
        """Print how to resume. Called before the tracker closes, which may take seconds."""
        what = f"by {signal.Signals(number).name} at step {result['steps']} of {self.max_steps}"
        self._summary(("stopped", f"{what}, saved"), run, result, ["train resume="])

    def end(self, run: RunDirectory, result: dict[str, Any]) -> None:
        """Print the results, the run directory and commands that use it."""
        status, steps = result["status"], result["steps"]
        why = f"at step {steps} of {self.max_steps}"
        if status != "finished":
            self._summary((status, f"{why}, saved"), run, result, ["train resume="])
            return
        if steps < self.max_steps:
            since = f"no lower validation loss since step {result['best_step']}"
            heading = ("stopped", f"early {why}: {since} (trainer.patience)")
        else:
            resumed = f", resumed at step {self.first_step}" if self.first_step else ""
            heading = ("finished", f"{steps} steps{resumed}")
        self._summary(heading, run, result, [self.use, "eval ", "report "])

    def _summary(
        self,
        heading: tuple[str, str],
        run: RunDirectory,
        result: dict[str, Any],
        commands: list[str],
    ) -> None:
        """Print a table. `commands`: without the run directory, which is their last argument."""
        path = shlex.quote(str(run.path))
        rows = [heading]
        if result["loss_of"] != EVERY_TOKEN:
            rows.append(("losses", f"of {result['loss_of']}"))
        if result["val_loss"] is not None:
            measured = "full pass" if result["status"] == "finished" else "last evaluation"
            if "weights" in result:
                measured += f", {result['weights']} weights"
            best = f"best {result['best_val_loss']:.4f} at step {result['best_step']}"
            rows += [
                ("val loss", f"{result['val_loss']:.4f} nats/token ({measured}); {best}"),
                ("perplexity", f"{result['val_perplexity']:.3f}"),
                ("bits/byte", f"{result['val_bits_per_byte']:.4f}"),
            ]
        if "test_loss" in result:
            rows.append(("test loss", f"{result['test_loss']:.4f} nats/token (full pass)"))
        rows += [("time", duration(result["seconds"])), ("run", str(run.path))]
        for number, command in enumerate(commands):
            rows.append(("" if number else "next", f"minigpt {command}{path}"))
        self.view.rows(rows)
