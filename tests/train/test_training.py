"""The training loop: steps, checkpoints, early stopping, divergence; schedules, optimizers."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.config.compose import composed_config
from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.positional import PositionalScheme
from minigpt.optim.optimizer import OPTIMIZERS, StackedMuon
from minigpt.optim.schedule import SCHEDULES, Schedule
from minigpt.report.runs import read_run
from minigpt.runtime import choose_runtime
from minigpt.train.control import Stopwatch
from minigpt.train.display import Display
from minigpt.train.setup import BATCH_SEED
from minigpt.train.trainer import Trainer
from tests.conftest import TINY, Cli, inspect_wandb, read_metrics


def weights(run: str, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    """Return the weights that a run saved."""
    return load_file(f"{run}/checkpoints/{checkpoint}/model.safetensors")


def result(run: str) -> dict[str, object]:
    """Return a run's result.json."""
    return json.loads(Path(run, "result.json").read_text())


@pytest.mark.parametrize("ffn", [["ffn=relu2"], ["ffn=moe", "model.ffn.balance=0"]])
def test_accumulation_equals_the_large_batch(cli: Cli, ffn: list[str]) -> None:
    options = [*TINY, *ffn, "trainer.precision=fp32", "trainer.max_steps=5"]
    assert cli("train", *options, "hydra.run.dir=one").code == 0
    assert cli("train", *options, "hydra.run.dir=four", "trainer.grad_accum_steps=4").code == 0
    for name, weight in weights("one").items():
        torch.testing.assert_close(weights("four")[name], weight, rtol=1e-4, atol=1e-6)
    for one, four in zip(read_metrics(Path("one")), read_metrics(Path("four")), strict=True):
        for numbers in (one, four):
            numbers.pop("balance_loss", None)  # computed per micro-batch
        assert one == pytest.approx(four, rel=1e-5)


def test_balance_loss_balances_experts_and_is_not_in_train_loss(cli: Cli) -> None:
    options = [*TINY, "ffn=moe", "trainer.log_every=1", "trainer.eval_every=null"]
    for name, coefficient in (("free", 0), ("balanced", 10)):
        balance = [f"model.ffn.balance={coefficient}", f"hydra.run.dir={name}"]
        outcome = cli("train", *options, *balance, "optimizer.lr=0.01", "trainer.max_steps=60")
        assert outcome.code == 0, outcome.err
    counts = json.loads(Path("free/result.json").read_text())["parameters"]
    assert f"{counts['total']:,} parameters, {counts['active']:,} of them active\n" in outcome.out
    free, balanced = ([m for m in read_metrics(Path(n)) if "lr" in m] for n in ("free", "balanced"))
    usage = [f"expert_usage/layer_0/expert_{expert}" for expert in range(8)]
    for name in ("train_loss", "balance_loss", *usage):  # before the first update
        assert free[0][name] == balanced[0][name]
    for metrics in (*free, *balanced):
        assert sum(metrics[name] for name in usage) == pytest.approx(1, abs=1e-6)
    assert free[1]["grad_norm"] != balanced[1]["grad_norm"]
    mean_balance_losses = [
        sum(metrics["balance_loss"] for metrics in run[-20:]) / 20 for run in (free, balanced)
    ]
    assert mean_balance_losses[1] < 1.02 < mean_balance_losses[0]


def test_the_seed_determines_the_run(cli: Cli) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli("train", *TINY, f"seed={seed}", f"hydra.run.dir={name}").code == 0
    assert read_metrics(Path("a")) == read_metrics(Path("b")) != read_metrics(Path("c"))


def test_batches_and_initial_weights_use_different_seeds(cli: Cli) -> None:
    """Generators with equal seeds would draw equal numbers."""
    for seed in (0, 1, 2**32 - 1 - BATCH_SEED):
        batches = torch.Generator().manual_seed(seed + BATCH_SEED)
        initial = torch.Generator().manual_seed(seed)
        assert torch.rand(8, generator=batches).ne(torch.rand(8, generator=initial)).all()
    assert cli("train", *TINY, f"seed={2**32}").code == 2


@pytest.mark.fast
def test_training_fits_a_repeated_line(cli: Cli) -> None:
    """A text of one repeated line is predicted almost perfectly."""
    Path("text.txt").write_text("abcdefgh\n" * 400)
    options = [*TINY, "trainer.max_steps=150", "optimizer.lr=1e-2", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0
    assert float(str(result("run")["val_loss"])) < 0.3 < math.log(9)


def test_best_checkpoint_has_the_lowest_loss(cli: Cli) -> None:
    """At a high, constant learning rate the validation loss is not monotonic."""
    options = ["trainer.max_steps=400", "optimizer.lr=0.1", "trainer.eval_every=20"]
    options += ["schedule=constant"]
    assert cli("train", *TINY, *options, "hydra.run.dir=run").code == 0
    evaluations = {
        line["step"]: line["val_loss"] for line in read_metrics(Path("run")) if "val_loss" in line
    }
    best_step = min(evaluations, key=lambda step: (evaluations[step], step))
    assert best_step < 400, "the loss decreased to the end, so the test is vacuous"
    final = result("run")
    assert (final["best_step"], final["best_val_loss"]) == (best_step, evaluations[best_step])
    assert final["val_loss"] == evaluations[400]
    info = json.loads(Path("run/checkpoints/best/info.json").read_text())
    assert info == {"step": best_step, "val_loss": evaluations[best_step]}
    assert cli("eval", "run").code == 0
    assert (
        json.loads(Path("run/eval.json").read_text())["best"]["val_loss"] == evaluations[best_step]
    )


def test_patience_stops_a_run(cli: Cli) -> None:
    options = ["optimizer.lr=0", "trainer.patience=2", "trainer.max_steps=100"]
    assert cli("train", *TINY, *options, "hydra.run.dir=run").code == 0
    # The first evaluation is the best; the next two do not improve on it.
    assert result("run")["steps"] == 12
    assert result("run")["status"] == "finished"
    assert result("run")["best_step"] == 4


def test_a_run_stopped_by_patience_is_ranked_by_its_best_loss(cli: Cli) -> None:
    worse = ["optimizer.lr=3", "optimizer.grad_clip=null", "trainer.patience=1"]
    assert cli("train", *TINY, *worse, "trainer.max_steps=100", "hydra.run.dir=run").code == 0
    final, run = result("run"), read_run(Path("run"))
    evaluations = {m["step"]: m for m in read_metrics(Path("run")) if "val_loss" in m}
    best = evaluations[final["best_step"]]
    assert run.number("val_loss") == final["best_val_loss"] != final["val_loss"]
    assert run.number("val_bits_per_byte") == pytest.approx(best["val_bits_per_byte"], rel=1e-12)
    report = cli("report", "run")
    assert report.code == 0 and "trainer.patience stopped 1 run early" in report.out


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_and_threads_give_the_same_run(cli: Cli, threads: int) -> None:
    options = [*TINY, "model.n_embd=64", f"trainer.threads={threads}", "trainer.device=cpu"]
    for name in ("one", "two"):
        assert cli("train", *options, f"hydra.run.dir={name}").code == 0
    assert read_metrics(Path("one")) == read_metrics(Path("two"))
    for name, weight in weights("one").items():
        assert torch.equal(weights("two")[name], weight)


def test_patience_without_evaluations_is_refused(cli: Cli) -> None:
    options = [*TINY, "hydra.run.dir=run", "trainer.eval_every=null"]
    refused = cli("train", *options, "trainer.patience=2")
    assert refused.code == 2 and not Path("run").exists()
    assert refused.err == (
        "minigpt: trainer.patience=2: counts evaluations, and trainer.eval_every=null evaluates "
        "only after the last step; give trainer.eval_every a number of steps, or use "
        "trainer.patience=null\n"
    )
    assert cli("train", *options).code == 0
    resumed = cli("train", "resume=run", "trainer.max_steps=99", "trainer.patience=2")
    assert resumed.code == 2 and "trainer.patience=2: counts evaluations" in resumed.err
    config = Path("run/config.yaml")  # as an older version wrote it: still loaded
    lines = config.read_text().replace("patience: null", "patience: 2", 1).splitlines(True)
    config.write_text("".join(line for line in lines if "content_sha256" not in line))
    assert cli("sample", "run", "--max-new-tokens", "3").code == 0


def test_samples_use_at_most_block_size_tokens(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples use the context length of training, also with a scheme that extrapolates."""
    largest: list[int] = []
    embed = PositionalScheme.embed

    def record_and_embed(
        self: PositionalScheme, x: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        largest.append(int(positions.max()))
        return embed(self, x, positions)

    monkeypatch.setattr(PositionalScheme, "embed", record_and_embed)
    assert cli("train", *TINY, "trainer.sample_tokens=30").code == 0
    assert max(largest) == 7


def test_zero_steps_only_evaluate(cli: Cli) -> None:
    done = cli("train", *TINY, "trainer.max_steps=0", "hydra.run.dir=run")
    assert done.code == 0
    assert "max_steps=0: trains nothing; evaluates and saves initial weights" in done.out
    assert result("run")["steps"] == 0
    assert result("run")["val_loss"] is not None


@pytest.mark.parametrize("log_every", [1, 5, 100])
@pytest.mark.parametrize("checkpoint_every", ["1", "null"])
def test_divergence_reports_step_learning_rate_and_checkpoint(
    cli: Cli, log_every: int, checkpoint_every: str
) -> None:
    options = [*TINY, "optimizer.lr=1e30", "optimizer.grad_clip=null", "schedule=constant"]
    logging = [f"trainer.log_every={log_every}", f"trainer.checkpoint_every={checkpoint_every}"]
    outcome = cli("train", *options, *logging, "schedule.warmup_steps=0", "hydra.run.dir=run")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    saved = "run/checkpoints/last" if checkpoint_every == "1" else "none yet"
    assert f"at step 1 (learning rate 1e+30); last good checkpoint: {saved};" in outcome.err
    assert result("run")["status"] == "failed"
    assert "learning rate 1e+30" in str(result("run")["error"])
    if checkpoint_every == "1":
        assert all(weight.isfinite().all() for weight in weights("run").values())


HOPELESS = ["optimizer.lr=3", "schedule=constant", "schedule.warmup_steps=0"]


@pytest.mark.parametrize("log_every", [1, 7, 50])
def test_a_loss_that_stays_above_guessing_is_a_warning(cli: Cli, log_every: int) -> None:
    options = [*TINY, *HOPELESS, "trainer.max_steps=130", f"trainer.log_every={log_every}"]
    done = cli("train", *options, "hydra.run.dir=run")
    assert done.code == 0
    (warning,) = [line for line in done.out.splitlines() if line.startswith("warning")]
    assert "is above guessing (ln 41 = 3.7136), as in the 99 steps before it" in warning
    assert "lower optimizer.lr, or end such runs with trainer.guessing_patience" in warning
    assert re.search(r"step 130/130  val loss .*above guessing \(ln 41 = 3\.7136\)", done.out)


def test_a_loss_below_guessing_is_no_warning(cli: Cli) -> None:
    done = cli("train", *TINY, "optimizer.lr=1e-2", "trainer.max_steps=130")
    assert "warning" not in done.out and "guessing" not in done.out.split("step 12/130")[-1]


def test_guessing_patience_ends_a_hopeless_run(cli: Cli) -> None:
    options = [*TINY, *HOPELESS, "trainer.max_steps=400", "trainer.guessing_patience=20"]
    stopped = cli("train", *options, "hydra.run.dir=run")
    assert stopped.code == 1 and stopped.err.count("\n") == 1
    assert "as in the 19 steps before it, at step " in stopped.err
    assert "lower optimizer.lr" in stopped.err
    assert result("run")["status"] == "failed"
    assert cli("train", *TINY, "trainer.guessing_patience=0").code == 2


def test_steps_above_guessing_are_counted_across_a_resume(cli: Cli) -> None:
    options = [*TINY, *HOPELESS, "trainer.max_steps=15", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0
    more = ["trainer.max_steps=25", "trainer.guessing_patience=20"]
    stopped = cli("train", "resume=run", *more)
    assert stopped.code == 1 and "as in the 19 steps before it" in stopped.err


def test_non_finite_weights_are_not_saved(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update may overflow although loss and gradients are finite."""
    settle = Trainer._settle

    def set_infinity_and_settle(self: Trainer) -> None:
        if self.progress.step == 10:
            with torch.no_grad():
                self.model.head.weight[0, 0] = torch.inf
        settle(self)

    monkeypatch.setattr(Trainer, "_settle", set_infinity_and_settle)
    outcome = cli("train", *TINY, "trainer.eval_every=null", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "weights are not finite at step 9" in outcome.err
    assert all(weight.isfinite().all() for weight in weights("run").values())


def test_wandb_records_metrics_and_result(cli: Cli) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    assert cli("train", *tiny, "logger.mode=offline", "tags=[a,b]", "hydra.run.dir=run").code == 0
    (offline,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    inspected = inspect_wandb(offline)
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["tracker_id"] in offline.name
    for line in read_metrics(Path("run")):
        for name, value in line.items():
            assert f'"{name}"' in inspected
            assert value is not None
    assert str(result("run")["val_loss"])[:10] in inspected


def test_a_resumed_run_continues_its_wandb_run(cli: Cli) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    options = [*tiny, "logger.mode=offline", "schedule=constant", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0
    assert cli("train", "resume=run", "trainer.max_steps=14").code == 0
    names = {path.name for path in Path("run/wandb").glob("offline-run-*/run-*.wandb")}
    assert len(names) == 1  # one id in two files


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize("attention", ["full", "bigbird"])  # bigbird hashes indices
def test_compile_trains_the_same_model(cli: Cli, attention: str) -> None:
    few = ["trainer.precision=fp32", "trainer.max_steps=3", "trainer.sample_every=null"]
    options = [*TINY, *few, f"attention={attention}"]
    assert cli("train", *options, "hydra.run.dir=plain").code == 0
    assert cli("train", *options, "trainer.compile=true", "hydra.run.dir=compiled").code == 0
    for name, weight in weights("plain").items():
        torch.testing.assert_close(weights("compiled")[name], weight, rtol=1e-3, atol=1e-5)


def schedule(name: str, max_steps: int, *options: str) -> Schedule:
    """Return a schedule with options as on the command line."""
    config = composed_config([f"schedule={name}", *(f"schedule.{option}" for option in options)])
    return SCHEDULES.build(config.schedule, max_steps)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedules_warm_up_and_then_do_not_increase(name: str) -> None:
    long = schedule(name, 100, "warmup_steps=10")
    factors = [long.factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    assert all(0 <= late <= early for early, late in itertools.pairwise(factors[10:]))
    short = schedule(name, 5, "warmup_steps=10")
    assert [short.factor(step) for step in range(5)] == factors[:5]


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_warmup_is_a_fraction_of_the_steps(name: str) -> None:
    assert schedule(name, 2000).warmup == 100
    assert schedule(name, 100).warmup == 5
    assert schedule(name, 100, "warmup_fraction=0.2").warmup == 20
    assert schedule(name, 100, "warmup_fraction=0").warmup == 0
    assert schedule(name, 100, "warmup_steps=7").warmup == 7
    with pytest.raises(UserError, match=r"schedule\.warmup_fraction=1\.5: must be from 0 to 1"):
        schedule(name, 100, "warmup_fraction=1.5")
    with pytest.raises(UserError, match=r"warmup_fraction=0\.2: schedule\.warmup_steps=7 sets"):
        schedule(name, 100, "warmup_fraction=0.2", "warmup_steps=7")


def test_schedule_formulas() -> None:
    cosine = schedule("cosine", 1000, "warmup_steps=0", "final_fraction=0.1")
    assert cosine.factor(500) == pytest.approx(0.55)
    assert cosine.factor(250) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    linear = schedule("linear", 1000, "warmup_steps=0", "final_fraction=0.2")
    assert linear.factor(500) == pytest.approx(0.6)
    wsd = schedule("wsd", 1000, "warmup_steps=0", "final_fraction=0", "decay_fraction=0.2")
    assert [wsd.factor(step) for step in (799, 800, 900)] == pytest.approx([1, 1, 0.5])
    assert schedule("wsd", 1000, "warmup_steps=0", "decay_fraction=0").factor(999) == 1
    assert schedule("constant", 10).factor(200) == 1


def test_stopwatch_pauses_nest() -> None:
    watch = Stopwatch()
    with watch.paused():
        before = watch.seconds
        with watch.paused():
            time.sleep(0.01)
        time.sleep(0.01)
        assert watch.seconds == before
    assert before <= watch.seconds < before + 0.01


def test_adamw_equals_torch_adamw() -> None:
    """Bit by bit, with its hooks, through state_dict and back."""
    config = composed_config(["optimizer=adamw", "model.n_layer=1", "optimizer.weight_decay=0.3"])
    results, calls = [], []
    for is_torch in (False, True):
        torch.manual_seed(1)
        model = GPT(config.model, 65)
        ours = OPTIMIZERS.build(config.optimizer, model)
        groups = [{"params": group["params"]} for group in ours.param_groups]
        optimizer = torch.optim.AdamW(groups, fused=True) if is_torch else ours
        optimizer.load_state_dict(ours.state_dict())
        optimizer.register_step_post_hook(lambda *_: calls.append(None))
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
        results.append([*model.parameters()])
    assert len(calls) == 6
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_eager_training_does_not_import_the_compiler(workdir: Path, name: str) -> None:
    """torch._dynamo takes nearly as long to import as torch."""
    arguments = ["train", *TINY, f"optimizer={name}", "trainer.compile=false", "hydra.run.dir=run"]
    code = f"import minigpt.cli, sys; assert minigpt.cli.main({arguments}) == 0"
    check = f"{code}; assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_stacked_muon_equals_torch_muon() -> None:
    shapes = [(12, 4), (4, 12), (4, 4), (12, 4), (4, 12), (7, 5)]
    initial = [torch.randn(shape) for shape in shapes]
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}
    results, states = [], []
    for kind in (torch.optim.Muon, StackedMuon):
        parameters = [torch.nn.Parameter(start.clone()) for start in initial]
        without_gradient = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = kind([*parameters, without_gradient], **options)
        for step in range(3):
            torch.manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        assert torch.equal(without_gradient, torch.ones(4, 4))
        results.append(parameters)
        states.append(optimizer.state_dict())
    for start, expected, result in zip(initial, *results, strict=True):
        assert (expected - result).norm() < 0.02 * (expected - start).norm()  # bf16 rounding
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"])


def test_muon_updates_block_matrices_and_adamw_the_rest() -> None:
    options = ["optimizer.weight_decay=0.1", "optimizer.lr=0.01", "model.n_layer=2"]
    configs = [composed_config([f"optimizer={name}", *options]) for name in ("muon", "adamw")]
    models = []
    for config in configs:
        torch.manual_seed(1)
        model = GPT(config.model, 65)
        optimizer = OPTIMIZERS.build(config.optimizer, model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        models.append((model, before))
    (muon_model, before), (adamw_model, _) = models
    n_matrices = 0
    for name, parameter in muon_model.named_parameters():
        if not (name.startswith("blocks") and parameter.ndim == 2):
            assert torch.equal(parameter, adamw_model.get_parameter(name)), name
            continue
        gradient = parameter.grad
        assert gradient is not None
        n_matrices += 1
        step = -(parameter - 0.999 * before[name]) / (0.01 * 0.2 * max(parameter.shape) ** 0.5)
        expected = near_orthogonal(gradient.double())
        assert (step - expected).norm() < 0.03 * expected.norm(), name
    assert n_matrices == 8


def near_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Apply Jordan's quintic five times to the singular values, divided by the Frobenius norm."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


def test_explicit_device_and_precision_are_used() -> None:
    runtime = choose_runtime("cpu", "fp32")
    assert (runtime.device, runtime.precision) == ("cpu", "fp32")
    assert choose_runtime("cpu", "bf16").precision == "bf16"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^trainer.device=cuda: not available to torch"):
            choose_runtime("cuda", "auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_trains_in_bf16_without_synchronization(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises an error if a training step synchronizes with the device."""
    settle, show_loss, show = Trainer._settle, Trainer._show_loss, Display.step

    def allow_and_settle(self: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("default")
        settle(self)

    def allow_and_show_loss(self: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("default")
        show_loss(self)

    def show_and_forbid(self: Display, step: int) -> None:
        show(self, step)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Trainer, "_settle", allow_and_settle)
    monkeypatch.setattr(Trainer, "_show_loss", allow_and_show_loss)  # of the first step
    monkeypatch.setattr(Display, "step", show_and_forbid)
    options = [option for option in TINY if not option.startswith("trainer.device")]
    never = ["trainer.eval_every=null", "trainer.sample_every=null", "trainer.log_every=100"]
    assert cli("train", *options, *never, "trainer.device=cuda", "hydra.run.dir=run").code == 0
    assert result("run")["device"] == "cuda"
    assert result("run")["precision"] == "bf16"


@pytest.mark.parametrize(
    ("choices", "resolved", "printed"),
    [
        (["attention=sliding_window"], {"window": 2}, "sliding_window (layers sliding_window; w"),
        (["attention=landmark"], {"block": 1, "retrieved": 7}, "landmark (block 1; retrieved 7)"),
        (["ffn=moe"], {}, "; n_expert 8; n_active 2; balance 0.01)"),
    ],
)
def test_null_options_are_resolved_and_printed(
    cli: Cli, choices: list[str], resolved: dict[str, int], printed: str
) -> None:
    outcome = cli("train", *TINY, *choices, "trainer.max_steps=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert printed in outcome.out
    values = json.loads(Path("run/manifest.json").read_text())["resolved"]
    assert values.items() >= {f"model.attention.{k}": v for k, v in resolved.items()}.items()


def test_default_prompt_of_a_text_without_newlines(cli: Cli, workdir: Path) -> None:
    Path("text.txt").write_text("\\one line of text " * 60)
    outcome = cli("train", *TINY, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "--- step 6 ---\n\\" in Path("run/samples.txt").read_text()
    for options in ([], ["--prompt", r"one\\"], ["--beams", "2"]):
        sampled = cli("sample", "run", "--max-new-tokens", "5", *options)
        assert sampled.code == 0, sampled.err
        assert sampled.out.startswith("one\\" if "--prompt" in options else "\\")
    refused = cli("sample", "run", "--prompt", r"\n")
    assert refused.code == 2 and refused.err.startswith("minigpt: --prompt: text='\\n' (U+000A)")


def test_prompts_are_checked_only_where_they_are_used(cli: Cli, workdir: Path) -> None:
    options = [*TINY, "trainer.sample_prompt=§", "hydra.run.dir=run"]
    refused = cli("train", *options)
    assert refused.code == 2 and "trainer.sample_prompt=§: text='§' (U+00A7)" in refused.err
    assert not Path("run").exists()
    assert cli("train", *options, "trainer.sample_every=null").code == 0
    assert cli("sample", "run", "--max-new-tokens", "5").code == 0


@pytest.mark.parametrize("prompt", [r"a\nb", "a\nb"])
def test_prompts_understand_escapes(cli: Cli, workdir: Path, prompt: str) -> None:
    Path("text.txt").write_text("a\nb\\" * 300)
    assert cli("train", *TINY, f"trainer.sample_prompt={prompt}", "hydra.run.dir=run").code == 0
    assert "--- step 6 ---\na\nb" in Path("run/samples.txt").read_text()
    sampled = cli("sample", "run", "--prompt", prompt, "--max-new-tokens", "5")
    assert sampled.out.startswith("a\nb")
    for command in (
        ["train", *TINY, r"trainer.sample_prompt=\q"],
        ["sample", "run", "--prompt", "\\"],
    ):
        refused = cli(*command)
        assert refused.code == 2 and "invalid escape" in refused.err
