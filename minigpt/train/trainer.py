"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from minigpt.console import Advance, counted
from minigpt.data import Batch
from minigpt.data.corpus import unescape
from minigpt.data.order import ORDERS
from minigpt.data.tokens import Split
from minigpt.errors import Failure
from minigpt.evaluate.loss import Evaluation, evaluate, perplexity
from minigpt.inference.fill import filled_window
from minigpt.inference.generate import generate_from, stop_at, stream_text
from minigpt.logger import Logger
from minigpt.model import GPT
from minigpt.objective.base import parts
from minigpt.optim.schedule import SCHEDULES
from minigpt.ranks import gathered
from minigpt.run.directory import RunDirectory
from minigpt.run.weights import load_weights
from minigpt.runtime import peak_memory_bytes
from minigpt.train.compilation import Planned, compiled_loss, reproducible_code, why_not_compiled
from minigpt.train.control import Diverged, Interrupted, StopRequest, Stopwatch, stop_signals
from minigpt.train.display import Display
from minigpt.train.graph import Metrics
from minigpt.train.setup import Setup

GUESSING_STEPS = 100  # in a row before a warning


class Trainer:
    """Trains one model in one run directory. `train` is the loop, other methods are its parts.

    `stop`: set by a signal handler or another thread to end training after the current step.
    `stopwatch`: measures training steps; replicas share one.
    `on_evaluation`: called after each evaluation; may raise EarlyStop to end the run.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunDirectory,
        display: Display,
        logger: Logger,
        stop: StopRequest | None = None,
        stopwatch: Stopwatch | None = None,
        on_evaluation: Callable[[Trainer], None] | None = None,
    ) -> None:
        self.config, self.options = setup.config, setup.config.trainer
        self.runtime, self.tokenizer, self.data = setup.runtime, setup.tokenizer, setup.data
        self.backend, self.objective = setup.backend, setup.objective
        self.state, self.progress = setup.state, setup.state.progress
        self.model, self.optimizer = setup.state.model, setup.state.optimizer
        self.schedule = SCHEDULES.build(self.config.schedule, self.options.max_steps)
        batch_size, block_size = self.options.batch_size, self.config.model.block_size
        self.tokens_per_step = batch_size * block_size
        self.windows = ORDERS[self.config.data.order](
            *(self.data.train, batch_size, block_size, self.state.generator, self.config.seed)
        )
        self.run, self.display, self.logger = run, display, logger
        self.stop = stop or StopRequest()
        self.stopwatch = stopwatch or Stopwatch()
        self.on_evaluation = on_evaluation
        self.stopped_by: int | None = None  # a signal that arrived during the last step
        if self.model.backend_name == "flex":
            torch.compiler.reset()  # torch.compile's recompile limit is per process
        parts = (setup.loss, self.model, self.optimizer, self.runtime, self.config)
        self.step = setup.parallel.step(self.options.graph, *parts)
        # Of the steps since the last `_settle`, still on the device: metrics by step and
        # micro-batch, gradient norms by step.
        self.logged: list[Metrics] = []
        self.norms: list[Tensor] = []

    def train(self) -> None:
        """Train to the end: periodic work, then one training step, and so on.

        `progress` records which periodic work is done, so that a resumed run does not repeat or
        skip any, and is bit-identical. Raises Diverged if the loss is not finite, and Interrupted
        after a signal, once a checkpoint is saved.
        """
        self.begin()
        with stop_signals(self.stop):
            while self.periodic_work():
                self.take_step()

    # ---- one training step: nothing in it waits for the device ----

    def take_step(self) -> None:
        """Train on the next batch."""
        self.record(*self.step(self.draw(), self.lr(self.progress.step)))

    def draw(self) -> Sequence[Batch]:
        """Return the next batch, split into `grad_accum_steps` micro-batches.

        One of several processes gets its rows of each.
        """
        starts, block_size = self.windows.starts(self.progress.step), self.config.model.block_size
        draws = self.objective.draw(len(starts), block_size, self.state.generator)
        own, n = self.runtime.ranks.rows, self.options.grad_accum_steps
        return [
            self.objective.apply(
                self.data.train.windows_at(own(rows), block_size),
                {name: own(x) for name, x in of_rows.items()},
            )
            for rows, of_rows in zip(starts.chunk(n), parts(draws, n), strict=True)
        ]

    def record(self, metrics: Metrics, norm: Tensor) -> None:
        """Count a step, average its weights, and keep metrics and norm until the next `_settle`."""
        if self.state.average is not None:
            self.state.average.update(self.progress.step)
        self.logged.append(metrics)
        self.norms.append(norm)
        self.progress.step += 1
        self.display.step(self.progress.step)

    # ---- before the first step ----

    def compile(self) -> None:
        """Compile forward and backward pass. Raises Failure if torch.compile does."""
        self.model.train()
        started, generator = time.perf_counter(), self.state.generator
        state = generator.get_state()
        micro_batch = self.draw()[0]
        generator.set_state(state)
        cached = Planned(self.config, self.model.n_ordinary).cached(self.runtime)
        try:
            with self.display.preparing("compiling (once for this design)"):
                self.step.loss = compiled_loss(self.model, micro_batch, self.runtime, cached)
            self.step.code = partial(reproducible_code, self.runtime.device)
        except Exception as error:  # of many types, from torch, the compiler and the disk
            raise Failure(why_not_compiled(error, self.runtime.device)) from error
        self.progress.seconds += time.perf_counter() - started

    # ---- end of the step ----

    def begin(self) -> None:
        """Start the clocks and switch the model to training mode."""
        self.started = time.perf_counter() - self.progress.seconds
        self.stepped_before = self.progress.step_seconds - self.stopwatch.seconds
        self.model.train()

    def periodic_work(self) -> bool:
        """Log, evaluate, sample and save if due. Return False after the last step."""
        options = self.options
        end = self.progress.step == options.max_steps
        self.stop.number = self.runtime.ranks.agreed(self.stop.number, "a training step")
        if self.stop.number is not None and not end:
            self.save()
            self.display.stopped(self.stop.number, self.run, self.result("interrupted"))
            raise Interrupted(self.stop.number)
        if end or self._due(options.log_every):
            self._log()
        elif self.logged and self.display.wants_loss:
            self._show_loss()
        if end or self._due(options.eval_every):
            self._evaluate()
        if self._due(options.sample_every) or (end and options.sample_every is not None):
            self._sample()
        stale, patience = self.progress.stale_evaluations, options.patience
        end = end or (patience is not None and stale >= patience)
        if end or self._due(options.checkpoint_every):
            self.save()
        if end:
            self.stopped_by = self.stop.number  # this run is finished, but its sweep must stop
        return not end

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.config.optimizer.lr * self.schedule.factor(step)

    def result(self, status: str) -> dict[str, Any]:
        """Return the content of result.json, with null for missing results.

        The training loss is that of `TokenData.train_slice`. With an average of the weights, the
        losses are those of the better `weights`, and the validation loss of both is stated.
        """
        progress, runtime = self.progress, self.runtime
        tokens = progress.step * self.tokens_per_step
        speed = tokens / progress.step_seconds if progress.step_seconds else None
        val_loss, train_loss, test, by_rank = progress.val_loss, None, {}, {}
        if status == "finished":
            train_slice = self.data.train_slice(self.tokenizer)
            train_loss = self._pass_over(train_slice, self.state.better).loss
            if self.data.test is not None:
                test = self._test(self.data.test).metrics("test")
            if self.options.parallel != "none":
                by_rank = self._by_rank(speed)
        return {
            "status": status,
            "seed": self.config.seed,
            "objective": self.config.objective.name,
            "loss_of": self.objective.loss_of,
            "steps": progress.step,
            "best_step": progress.best_step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "best_val_loss": progress.best_val_loss,
            "val_perplexity": None if val_loss is None else perplexity(val_loss),
            "val_bits_per_byte": progress.val_bits_per_byte,
            **self._continuation(),
            **test,
            **({"weights": progress.weights} if progress.val_losses else {}),
            **{f"val_loss_{name}": loss for name, loss in progress.val_losses.items()},
            "parameters": self.model.parameter_counts(),
            "flops_per_token": self.model.flops_per_token(self.options.micro_batch_size),
            "tokens_per_second": speed,
            "seconds": progress.seconds,
            "peak_memory_bytes": peak_memory_bytes(runtime.device),
            "device": runtime.device,
            "precision": runtime.precision,
            "backend": self.backend,
            **by_rank,
        }

    def _continuation(self) -> dict[str, float]:
        """Return bits/byte of continuing text, of the last and the best evaluation, if defined."""
        values = {
            "val_continuation_bits_per_byte": self.progress.val_continuation,
            "best_val_continuation_bits_per_byte": self.progress.best_val_continuation,
        }
        return {key: value for key, value in values.items() if value is not None}

    def _by_rank(self, speed: float | None) -> dict[str, Any]:
        """Return what result.json says of the processes of a run."""
        ranks = self.runtime.ranks
        memory = ranks.gather(peak_memory_bytes(self.runtime.device), "the result")
        return {
            "processes": ranks.size,
            "tokens_per_second_per_process": None if speed is None else speed / ranks.size,
            "peak_memory_bytes_by_rank": memory,
            "collective_share": self.step.collective_share,
        }

    def save(self) -> None:
        """Write the last checkpoint. Raises Diverged if a weight is not finite."""
        with self._paused():
            finite = torch.stack([gathered(p.isfinite().all()) for p in self.model.parameters()])
            if not finite.all():
                self._diverged(max(0, self.progress.step - 1), "weights are not finite")
            self.progress.log_sizes = self.run.log_sizes()
            self.state.save(self.run.last)

    def _due(self, every: int | None) -> bool:
        step = self.progress.step
        return every is not None and step > 0 and step % every == 0

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Sync the device, and exclude this block from the time of training steps."""
        self._settle()
        with self.stopwatch.paused():
            yield

    def _settle(self) -> None:
        """Wait for the device, read the losses and gradient norms of its steps, and the clocks.

        Raises Diverged if one of them is not finite.
        """
        progress = self.progress
        if self.logged:
            logged, norms = step_means(self.logged), torch.stack(self.norms).tolist()
            losses = logged.pop("train_loss")
            first = progress.step - len(losses)
            for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    self._diverged(step, f"loss {loss} with gradient norm {norm}")
                self._compare_with_guessing(step, loss)
            progress.recent_losses += losses
            progress.recent_norms += norms
            for name, values in logged.items():
                progress.recent_extras.setdefault(name, []).extend(values)
            self.logged, self.norms = [], []
        progress.step_seconds = self._step_seconds()
        progress.seconds = time.perf_counter() - self.started

    def _compare_with_guessing(self, step: int, loss: float) -> None:
        """Count steps in a row with a loss above ln(vocabulary); at the limit warn or stop."""
        progress, guessing = self.progress, math.log(self.model.n_vocab)
        progress.guessing_steps = progress.guessing_steps + 1 if loss > guessing else 0
        patience = self.options.guessing_patience
        if progress.guessing_steps != (patience or GUESSING_STEPS):
            return
        what = (
            f"training loss {loss:.4f} is above guessing (ln {self.model.n_vocab} = "
            f"{guessing:.4f}), as in the {progress.guessing_steps - 1} steps before it,"
        )
        if patience is not None:
            self._diverged(step, what)
        remedy = "lower optimizer.lr, or end such runs with trainer.guessing_patience"
        self.display.line(f"warning    {what} at step {step}; {remedy}")

    def _diverged(self, step: int, what: str) -> NoReturn:
        checkpoint = self.run.last if self.run.last.exists() else "none yet"
        clip = " or set optimizer.grad_clip" if self.config.optimizer.grad_clip is None else ""
        raise Diverged(
            f"{what} at step {step} (learning rate {self.lr(step):.3g}); last good checkpoint: "
            f"{checkpoint}; lower optimizer.lr{clip}"
        )

    def _log(self) -> None:
        with self._paused():
            progress = self.progress
            if not progress.recent_losses:
                return
            steps = len(progress.recent_losses)
            loss, speed = self._loss_and_speed(progress.recent_losses, progress.step_seconds)
            metrics = {
                "train_loss": loss,
                "train_perplexity": perplexity(loss),
                "lr": self.lr(progress.step - 1),
                "grad_norm": math.fsum(progress.recent_norms) / steps,
                "tokens": progress.step * self.tokens_per_step,
                "tokens_per_second": speed,
                "seconds": progress.seconds,
                **{k: math.fsum(values) / steps for k, values in progress.recent_extras.items()},
            }
            progress.recent_losses, progress.recent_norms, progress.recent_extras = [], [], {}
            self._report(metrics)
            self.display.train(progress.step, loss, speed)

    def _show_loss(self) -> None:
        """Show the loss since the last `_settle`, which changes nothing. Syncs the device."""
        losses = step_means(self.logged)["train_loss"]
        speed = self._loss_and_speed(losses, self._step_seconds())
        self.display.train(self.progress.step, *speed)

    def _step_seconds(self) -> float:
        """Return the seconds of all training steps."""
        return self.stepped_before + self.stopwatch.seconds - self.step.profiler_seconds

    def _loss_and_speed(self, losses: list[float], seconds: float) -> tuple[float, float]:
        """Return the mean loss, and tokens/s if all training steps took `seconds`."""
        return math.fsum(losses) / len(losses), self.progress.step * self.tokens_per_step / seconds

    def _pass_over(self, split: Split, model: GPT) -> Evaluation:
        activity = f"evaluating the {split.name} split"
        whole = self.state.parallel.whole(model)
        with whole as model, self.display.working(activity, len(split.tokens)) as advance:
            return evaluate(model, split, self.runtime, progress=advance, objective=self.objective)

    def _test(self, split: Split) -> Evaluation:
        """Evaluate the test split, with the best weights if `patience` ended the run."""
        if self.progress.step == self.options.max_steps:
            return self._pass_over(split, self.state.better)
        last = deepcopy(self.model.state_dict())
        load_weights(self.run.best, self.model)
        try:
            return self._pass_over(split, self.model)
        finally:
            self.model.load_state_dict(last)

    def _evaluate(self) -> None:
        with self._paused():
            progress = self.progress
            if progress.evaluated_at == progress.step:
                return
            models = self.state.models.items()
            by_weights = {n: self._pass_over(self.data.val, model) for n, model in models}
            for result in by_weights.values():
                if not math.isfinite(result.loss):
                    self._diverged(max(0, progress.step - 1), f"validation loss {result.loss}")
            progress.weights = min(by_weights, key=lambda name: by_weights[name].loss)
            val = by_weights[progress.weights]
            if len(by_weights) > 1:
                progress.val_losses = {name: x.loss for name, x in by_weights.items()}
            best = val.loss < progress.best_val_loss
            if best:
                progress.best_val_loss, progress.best_step = val.loss, progress.step
                progress.best_val_continuation = val.continuation_bits_per_byte
                self.state.save_best(self.run.best)
            progress.stale_evaluations = 0 if best else progress.stale_evaluations + 1
            progress.evaluated_at = progress.step
            progress.val_loss, progress.val_bits_per_byte = val.loss, val.bits_per_byte
            progress.val_continuation = val.continuation_bits_per_byte
            self._settle()
            both = {f"val_loss_{name}": loss for name, loss in progress.val_losses.items()}
            self._report({**val.metrics("val"), **both, "seconds": progress.seconds})
            self.display.evaluation(progress.step, val, best, progress.val_losses)
            if self.on_evaluation is not None:
                self.on_evaluation(self)

    def _report(self, metrics: dict[str, float]) -> None:
        self.run.append_metrics({"step": self.progress.step, **metrics})
        self.logger.log(metrics, self.progress.step)

    def _sample(self) -> None:
        with self._paused():
            step = self.progress.step
            if self.progress.sampled_at == step:
                return
            self.progress.sampled_at = step
            n, whole = self.options.sample_tokens, self.state.parallel.whole(self.state.better)
            with whole as model, self.display.working("sampling", n) as advance:
                text = (
                    self._continued(model, n, advance)
                    if self.objective.can_continue
                    else filled_window(model, self.objective, self.data.val, self.runtime)
                )
            self.run.append_sample(step, text)
            self.logger.log_text(text, step)
            self.display.sample(step, text)

    def _continued(self, model: GPT, n: int, advance: Advance) -> str:
        """Return the prompt with n tokens more."""
        assert self.options.sample_prompt is not None, "resolved by build_setup"
        prompt, seed = unescape(self.options.sample_prompt), self.config.seed + self.progress.step
        # The model is trained on separate documents, so a sample ends with its document.
        separator = self.config.data.separator
        stops = [] if separator is None else [separator]
        start = self.objective.beginning(self.tokenizer.encode(prompt))
        rows = generate_from(model, [start], n, seed=seed, runtime=self.runtime)
        tokens = (row[0] for row in counted(rows, advance))
        return prompt + "".join(stop_at(stream_text(self.tokenizer, tokens), stops))


def step_means(logged: list[Metrics]) -> dict[str, list[float]]:
    """Return each metric's values by step, averaged over micro-batches. Syncs the device.

    `logged`: metrics by step and micro-batch. The elements of a vector are named NAME_0, NAME_1.
    """
    names = [
        f"{name}_{index}" if value.ndim else name
        for name, value in logged[0][0].items()
        for index in range(value.numel())
    ]
    rows = [
        torch.cat([value.flatten() for value in micro_batch.values()])
        for step in logged
        for micro_batch in step
    ]
    means = torch.stack(rows).unflatten(0, (len(logged), -1)).mean(1)  # step, name
    return dict(zip(names, means.T.tolist(), strict=True))
