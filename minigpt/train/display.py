"""Progress of a run: a live bar in a terminal, plain lines in a pipe or file."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from typing import Any

from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minigpt.console import PipeConsole, described, time_left
from minigpt.evaluate.loss import Evaluation
from minigpt.run.directory import RunDirectory
from minigpt.train.setup import Setup

REFRESH_SECONDS = 0.2


class Display:
    """Shows the progress of a run. The bar below the lines is shown only in a terminal."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.live = sys.stdout.isatty()
        self.console = PipeConsole(highlight=False, soft_wrap=True)
        self.progress = Progress(
            *(TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=None)),
            *(TextColumn("{task.fields[status]}"), TimeRemainingColumn(compact=True)),
            console=self.console,
            disable=not self.live,
            refresh_per_second=1 / REFRESH_SECONDS,
        )
        self.first_step = 0
        self.shown_at = 0.0
        self.status = ""

    def start(
        self, setup: Setup, run: RunDirectory, manifest: dict[str, Any], notices: dict[str, str]
    ) -> None:
        """Print the run's settings and `notices`, and start the bar."""
        config, state = setup.config, setup.state
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
            "design": f"{model.positional.name} positions, {model.norm.placement}-norm "
            f"({model.norm.kind}), {model.embedding.name} head",
            "ffn": described(model.ffn),
            "attention": f"{described(model.attention)}; {setup.backend}",
            "run": str(run.path),
        }
        for name, fact in (facts | notices).items():
            self.line(f"{name:<10} {fact}")
        warmup = config.schedule.warmup(self.max_steps)
        self.vocabulary = manifest["vocabulary"]
        if self.max_steps == 0:
            self.line("trainer    max_steps=0: trains nothing; evaluates and saves initial weights")
        elif warmup >= self.max_steps:
            self.line(f"schedule   warm-up ({warmup} steps) covers all {self.max_steps} steps")
        step = self.first_step = state.progress.step
        if step:
            self.line(f"resumed at step {step}")
        self.started = time.perf_counter()
        self.task = self.progress.add_task(
            "train", total=self.max_steps, completed=step, status=self.status
        )
        self.progress.start()

    def stop(self) -> None:
        """Stop the bar and restore the terminal."""
        self.progress.stop()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(escape(text))

    def step(self, step: int) -> None:
        """Update the bar, at most every REFRESH_SECONDS."""
        now = time.perf_counter()
        if self.live and now - self.shown_at > REFRESH_SECONDS:
            self.shown_at = now
            self._show(step)

    def _show(self, step: int) -> None:
        if self.live:
            self.progress.update(self.task, completed=step, status=self.status, refresh=True)

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Print training metrics, or show them in the bar."""
        loss, speed = metrics["train_loss"], metrics["tokens_per_second"]
        self.status = f"train {loss:.4f}  {speed:,.0f} tokens/s"
        self._show(step)
        if not self.live:
            done, seconds = step - self.first_step, time.perf_counter() - self.started
            left = time_left(seconds / done * (self.max_steps - step)) if done > 0 else ""
            self.line(f"step {step}/{self.max_steps}  {self.status}  {left}")

    def evaluation(self, step: int, val: Evaluation, best: bool) -> None:
        """Print a validation loss. `best`: the lowest so far."""
        notes = ["best"] if best else []
        guessing = math.log(self.vocabulary)
        if val.loss > guessing:
            notes.append(f"above guessing (ln {self.vocabulary} = {guessing:.4f})")
        self.line(
            f"step {step}/{self.max_steps}  val loss {val.loss:.4f}  perplexity "
            f"{val.perplexity:.3f}  bits/byte {val.bits_per_byte:.4f}  {', '.join(notes)}".rstrip()
        )

    def sample(self, step: int, text: str) -> None:
        """Print sampled text."""
        if self.live:
            self.console.print(Panel(escape(text), title=f"sample at step {step}", style="dim"))
        else:
            indented = "\n".join(f"    {line}" for line in text.splitlines())
            self.line(f"step {step}/{self.max_steps}  sample:\n{indented}")

    def stopped(self, number: int, run: RunDirectory) -> None:
        """Print how to resume. Called before the tracker closes, which may take seconds."""
        name, path = signal.Signals(number).name, shlex.quote(str(run.path))
        self.line(f"stopped by {name}, saved; resume with: minigpt train resume={path}")

    def end(self, run: RunDirectory, result: dict[str, Any]) -> None:
        """Print the results, the run directory and a command to use it."""
        self.line(
            f"validation loss {result['val_loss']:.4f} nats/token, perplexity "
            f"{result['val_perplexity']:.3f}, {result['val_bits_per_byte']:.4f} bits/byte "
            f"(full pass); best {result['best_val_loss']:.4f} at step {result['best_step']}; "
            f"{result['seconds']:.1f} s"
        )
        self.line(f"run in {run.path}; next: minigpt sample {shlex.quote(str(run.path))}")
