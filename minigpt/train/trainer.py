"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from minigpt.config.schema import Config
from minigpt.data import Batch, TokenData
from minigpt.errors import require
from minigpt.evaluate.loss import evaluate, perplexity
from minigpt.inference.generate import generate, stop_at, stream_text
from minigpt.logger import Logger
from minigpt.model import GPT
from minigpt.optim.optimizer import OPTIMIZERS
from minigpt.optim.schedule import SCHEDULES
from minigpt.run.directory import RunDirectory
from minigpt.runtime import Runtime, peak_memory_bytes, reset_peak_memory
from minigpt.tokenizer import Tokenizer
from minigpt.train.control import Diverged, Interrupted, Stop, Stopwatch, stop_signals
from minigpt.train.display import Display
from minigpt.train.state import TrainState, load_last, save_best, save_last

if TYPE_CHECKING:
    from minigpt.config.schema import Config


# Added to the seed, so that batches and initial weights are not one stream. Torch's CPU generator
# looks at the lowest 32 bits of a seed alone.
BATCH_SEED = 0x5EED


class Trainer:
    """Trains one model in one run directory. `train` is the loop, the rest is what it calls.

    `on_evaluation` is called after each validation; it may end the run by raising Stopped.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        tokenizer: Tokenizer,
        data: TokenData,
        runtime: Runtime,
        display: Display,
    ) -> None:
        self.config, self.options, self.run = config, config.trainer, run
        self.tokenizer, self.runtime, self.display = tokenizer, runtime, display
        reset_peak_memory(runtime.device)
        torch.manual_seed(config.seed)
        self.data = data.to(runtime.device)
        self.batches = torch.Generator(self.data.train.tokens.device)  # where windows are drawn
        self.batches.manual_seed(config.seed + BATCH_SEED)
        self.model = GPT(config.model, tokenizer.n_vocab).to(runtime.device)
        self.backend = self.model.use_backend(runtime.device, runtime.precision == "bf16", "train")
        self.loss = self.model.training_loss
        if self.options.compile or self.model.backend_name == "flex":
            torch.compiler.reset()  # its limit of compiled variants counts over a whole sweep
        if self.options.compile:
            self.loss = torch.compile(self.model.training_loss)
        self.optimizer = OPTIMIZERS.build(config.optimizer, self.model)
        self.schedule = SCHEDULES.build(config.schedule, self.options.max_steps)
        self.state = TrainState()
        self.logger: Logger  # comes before `begin`: a tracker opens only once all else is ready
        self.stop = Stop()
        self.stopwatch = Stopwatch()  # of training steps; those that step together share one
        self.on_evaluation: Callable[[Trainer], None] = lambda trainer: None
        self.stopped_by: int | None = None
        # Of the steps since `_settle`, still on the device; `logged` by step and piece.
        self.logged: list[list[dict[str, Tensor]]] = []
        self.norms: list[Tensor] = []

    def resume(self) -> None:
        """Go back to the last checkpoint, logs included; to the first step if there is none."""
        saved = load_last(self.run.last, self.model, self.optimizer, self.batches)
        self.state = saved or TrainState()
        self.run.rewind_logs(self.state.log_sizes)
        require(
            self.state.step <= self.options.max_steps,
            "trainer.max_steps",
            self.options.max_steps,
            f"this run has done {self.state.step} steps already; ask for more",
        )

    def begin(self) -> None:
        """Be ready for the first step, or the next one of a resumed run."""
        self.started = time.perf_counter() - self.state.seconds
        self.stepped_before = self.state.step_seconds - self.stopwatch.seconds
        self.model.train()

    def train(self) -> None:
        """Train to the end: periodic work, then one training step, and again.

        The state knows what a step's periodic work has done, so that a resumed run neither repeats
        nor misses any and ends bit-equal. Raises Diverged at a non-finite loss, and Interrupted,
        the run saved, at a signal.
        """
        self.begin()
        with stop_signals(self.stop):
            while self.periodic_work():
                # One training step: nothing in here waits for the device.
                pieces = self.draw()
                logged = [self.backward(piece) for piece in pieces]
                self.update(logged)

    def periodic_work(self) -> bool:
        """What is due before the next step; whether there is one."""
        options, state = self.options, self.state
        end = state.step == options.max_steps
        if self.stop.number is not None and not end:
            self.save()
            self.display.stopped(self.stop.number, self.run)
            raise Interrupted(self.stop.number)
        if end or self._due(options.log_every):
            self._log()
        if end or self._due(options.eval_every):
            self._evaluate()
        if self._due(options.sample_every) or (end and options.sample_every is not None):
            self._sample()
        end = end or self._out_of_patience()
        if end or self._due(options.checkpoint_every):
            self.save()
        if end:
            self.stopped_by = self.stop.number  # too late for this run, not for its sweep
        return not end

    # ---- one training step: nothing from here on waits for the device ----

    def draw(self) -> Sequence[Batch]:
        """The next batch, in the pieces in which it is computed."""
        options = self.options
        block_size = self.config.model.block_size
        batch = self.data.train.draw(options.batch_size, block_size, self.batches)
        return list(batch.chunk(options.grad_accum_steps))

    def backward(self, piece: Batch) -> dict[str, Tensor]:
        """Add a piece's gradients to those of the weights; returns what it logs."""
        with self.runtime.autocast():
            loss, numbers = self.loss(piece.inputs, piece.targets, piece.documents)
        (loss / self.options.grad_accum_steps).backward()
        return numbers

    def update(self, logged: list[dict[str, Tensor]]) -> None:
        """Move the weights by their gradients. `logged`: what each piece of the batch logs."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.state.step) * group.get("lr_factor", 1.0)
        clip = (
            math.inf if self.config.optimizer.grad_clip is None else self.config.optimizer.grad_clip
        )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.logged.append(logged)
        self.norms.append(norm)
        self.state.step += 1
        self.display.step(self.state.step)

    # ---- end of the step ----

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.config.optimizer.lr * self.schedule.factor(step)

    def result(self, status: str) -> dict[str, Any]:
        """The content of result.json; null where the run has not come to a number.

        The training loss is of a slice of the training split as long as the validation split.
        """
        state, runtime = self.state, self.runtime
        tokens = state.step * self.options.batch_size * self.config.model.block_size
        finished = status == "finished"
        train_split = self.data.train.head(len(self.data.val.tokens))
        return {
            "status": status,
            "seed": self.config.seed,
            "steps": state.step,
            "best_step": state.best_step,
            "train_loss": evaluate(self.model, train_split, runtime).loss if finished else None,
            "val_loss": state.val_loss,
            "best_val_loss": state.best_val_loss,
            "val_perplexity": None if state.val_loss is None else perplexity(state.val_loss),
            "val_bits_per_byte": state.val_bits_per_byte,
            "parameters": self.model.parameter_counts(),
            "flops_per_token": self.model.flops_per_token(),
            "tokens_per_second": tokens / state.step_seconds if state.step_seconds else None,
            "seconds": state.seconds,
            "peak_memory_bytes": peak_memory_bytes(runtime.device),
            "device": runtime.device,
            "precision": runtime.precision,
            "backend": self.backend,
        }

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step > 0 and self.state.step % every == 0

    def _out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.state.stale_evaluations >= patience

    def _settle(self) -> None:
        """Wait for the device, take its losses and norms over and read the clocks.

        Raises Diverged where one of them is not finite. Every piece of periodic work settles first.
        """
        state = self.state
        if self.logged:
            logged, norms = step_means(self.logged), torch.stack(self.norms).tolist()
            losses = logged.pop("train_loss")
            first = state.step - len(losses)
            for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    self._diverged(step, f"loss {loss} with gradient norm {norm}")
            state.recent_losses += losses
            state.recent_norms += norms
            for name, values in logged.items():
                state.recent_extras.setdefault(name, []).extend(values)
            self.logged, self.norms = [], []
        state.step_seconds = self.stepped_before + self.stopwatch.seconds
        state.seconds = time.perf_counter() - self.started

    def _diverged(self, step: int, what: str) -> NoReturn:
        saved = self.run.last if self.run.last.exists() else "none yet"
        clip = " or set optimizer.grad_clip" if self.config.optimizer.grad_clip is None else ""
        raise Diverged(
            f"{what} at step {step} (learning rate {self.lr(step):.3g}); last good checkpoint: "
            f"{saved}; lower optimizer.lr{clip}"
        )

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Periodic work: its time is not stepping time."""
        self._settle()
        with self.stopwatch.paused():
            yield

    def save(self) -> None:
        """Write the last checkpoint: all that going on from this step needs."""
        with self._paused():
            finite = torch.stack([p.isfinite().all() for p in self.model.parameters()])
            if not finite.all():
                self._diverged(max(0, self.state.step - 1), "weights are no finite numbers")
            self.state.log_sizes = self.run.log_sizes()
            save_last(self.run.last, self.model, self.optimizer, self.batches, self.state)

    def _log(self) -> None:
        with self._paused():
            state = self.state
            if not state.recent_losses:
                return
            steps = len(state.recent_losses)
            tokens_a_step = self.options.batch_size * self.config.model.block_size
            loss = math.fsum(state.recent_losses) / steps
            metrics = {
                "train_loss": loss,
                "train_perplexity": perplexity(loss),
                "lr": self.lr(state.step - 1),
                "grad_norm": math.fsum(state.recent_norms) / steps,
                "tokens": state.step * tokens_a_step,
                "tokens_per_second": state.step * tokens_a_step / state.step_seconds,
                "seconds": state.seconds,
                **{k: math.fsum(values) / steps for k, values in state.recent_extras.items()},
            }
            state.recent_losses, state.recent_norms, state.recent_extras = [], [], {}
            self._report(metrics)
            self.display.train(state.step, metrics)

    def _evaluate(self) -> None:
        with self._paused():
            state = self.state
            if state.evaluated_at == state.step:
                return
            val = evaluate(self.model, self.data.val, self.runtime)
            if not math.isfinite(val.loss):
                self._diverged(max(0, state.step - 1), f"validation loss {val.loss}")
            better = val.loss < state.best_val_loss
            if better:
                state.best_val_loss, state.best_step = val.loss, state.step
                save_best(self.run.best, self.model, state)
            state.stale_evaluations = 0 if better else state.stale_evaluations + 1
            state.evaluated_at = state.step
            state.val_loss, state.val_bits_per_byte = val.loss, val.bits_per_byte
            self._settle()
            self._report({**val.metrics("val"), "seconds": state.seconds})
            self.display.evaluation(state.step, val, better)
            self.on_evaluation(self)

    def _report(self, metrics: dict[str, float]) -> None:
        self.run.append_metrics({"step": self.state.step, **metrics})
        self.logger.log(metrics, self.state.step)

    def _sample(self) -> None:
        with self._paused():
            if self.state.sampled_at == self.state.step:
                return
            self.state.sampled_at = self.state.step
            prompt = self.tokenizer.encode(self.options.sample_prompt)
            seed = self.config.seed + self.state.step
            tokens = generate(
                self.model, [prompt], self.options.sample_tokens, seed=seed, runtime=self.runtime
            )
            pieces = stream_text(self.tokenizer, (row[0] for row in tokens))
            separator = self.config.data.separator
            stops = [] if separator is None else [separator]  # it knows nothing beyond a document
            text = self.options.sample_prompt + "".join(stop_at(pieces, stops))
            self.run.append_sample(self.state.step, text)
            self.logger.log_text(text, self.state.step)
            self.display.sample(self.state.step, text)


def step_means(logged: list[list[dict[str, Tensor]]]) -> dict[str, list[float]]:
    """By name what steps logged, each the mean over its pieces. Waits for the device.

    A vector's numbers are named after it and their places: NAME_0, NAME_1.
    """
    names = [
        f"{name}_{place}" if value.ndim else name
        for name, value in logged[0][0].items()
        for place in range(value.numel())
    ]
    rows = [torch.cat([v.flatten() for v in piece.values()]) for step in logged for piece in step]
    means = torch.stack(rows).unflatten(0, (len(logged), -1)).mean(1)  # step, name
    return dict(zip(names, means.T.tolist(), strict=True))
