"""Train one small run per design and print digests of its losses, samples and final weights.

Equal digests on the same machine show that a change does not alter results:

    python scripts/numbers.py --check            # against HEAD, or HEAD~1 in a clean checkout
    python scripts/numbers.py --check REVISION   # against any commit that has this script
    python scripts/numbers.py --out before.json  # save the digests, and later
    python scripts/numbers.py --check before.json

Digests differ between CPUs and torch versions, so they are not committed. Every run takes STEPS
steps on the CPU in one thread. Weights are hashed without names, so that modules can be renamed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = 20
COMMON = [
    *("model.n_layer=2", "model.n_embd=32", "model.n_head=2", "model.block_size=32"),
    *("trainer.max_steps=20", "trainer.batch_size=4", "trainer.log_every=1"),
    *("trainer.eval_every=null", "trainer.checkpoint_every=null", "trainer.sample_every=20"),
    *("schedule.warmup_steps=5", "trainer.sample_tokens=40", "trainer.threads=1"),
    *("trainer.device=cpu", "trainer.precision=fp32", "logger=none"),
]
CHOICES = {
    "positional": "learned sinusoidal nope integrated block_input relative relative_bias t5 rope "
    "alibi xpos kerple fire cope",
    "attention": "sliding_window chunked bigbird performer landmark",
    "norm": "post sandwich peri output no_residual",
    "ffn": "gelu relu swiglu geglu geglu_tanh conv moe",
}
DESIGNS: dict[str, list[str]] = {
    **{
        f"{group}_{name}": [f"{'model' if group == 'positional' else group}={name}"]
        for group, names in CHOICES.items()
        for name in names.split()
    },
    "bigram": ["model=bigram", "model.n_layer=0"],
    "gpt2": ["model=gpt2", "model.n_layer=2"],
    "llama": ["model=llama", "model.n_layer=2"],
    **{
        name: [f"model={name}"]
        for name in ("t5_decoder", "bloom", "gpt_neox", "falcon", "gemma", "olmo2", "qwen2")
    },
    "tied": ["embedding=tied"],
    "rmsnorm_without_gain": ["model.norm.kind=rmsnorm", "model.norm.affine=false"],
    "bias_scaled_init": ["model.bias=true", "model.residual_init=scaled"],
    "dropout": ["model.dropout=0.1"],
    "multi_query": ["model.n_head=4", "model.n_kv_head=1"],
    "softcap": ["model.logit_softcap=20.0"],
    "value_residual": ["model.value_residual=true"],
    "x0_values": ["model.value_residual=x0"],
    "head_gates": ["model.head_gates=true"],
    "unet_skips": ["model.n_layer=4", "model.unet_skips=true"],
    "vocab_multiple": ["model.vocab_multiple=16"],
    "alternating_window": [
        *("attention=sliding_window", "model.attention.layers=[sliding_window,full]"),
        "model.block_size=64",
    ],
    "folded_window": ["attention=sliding_window", "model.block_size=300", "trainer.batch_size=2"],
    "rope_yarn": ["model.positional.scaling=yarn", "model.positional.factor=2"],
    "alibi_learned_post_moe": ["model=alibi", "model.positional.slopes=learned", "ffn=moe"],
    "sdpa": ["backend=sdpa"],
    "eager": ["backend=eager", "model=t5", "model.block_size=96"],
    "bf16": ["trainer.precision=bf16"],
    "ema": ["optimizer.ema=0.9", "trainer.eval_every=5"],
    "muon": ["optimizer=muon"],
    "accumulate": ["trainer.grad_accum_steps=2", "optimizer.grad_clip=0.5"],
    "schedule_cosine": ["schedule=cosine"],
    "schedule_wsd": ["schedule=wsd"],
    "documents": [r"data.document_separator='\n\n'"],
    "documents_window": [r"data.document_separator='\n\n'", "attention=sliding_window"],
    "documents_cope": [r"data.document_separator='\n\n'", "model=cope"],
    "epochs": ["data.order=epochs"],
    "bpe": ["tokenizer=bpe", "tokenizer.vocab_size=300"],
    "gpt2_tokens": ["tokenizer=gpt2", "model.n_embd=8", "model.n_head=1"],
    "patience": ["trainer.eval_every=5", "trainer.patience=1", "optimizer.lr=0.5"],
    "resume": [],
    "resume_muon_moe": ["optimizer=muon", "ffn=moe", "model.dropout=0.1"],
    "replicas": ["-m", "seed=1,2", "hydra/launcher=replicas"],
}


def main() -> int:
    """Print one line per design; exit 1 where a digest differs from the one to check against."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("designs", nargs="*", help="names of designs; all by default")
    parser.add_argument("--out", type=Path, help="write the digests to a JSON file")
    source, text = "REVISION|FILE", "compare with a commit or file"
    parser.add_argument("--check", nargs="?", const="", metavar=source, help=text)
    arguments = parser.parse_args()
    unknown = set(arguments.designs) - set(DESIGNS)
    if unknown:
        parser.error(f"no such design: {', '.join(sorted(unknown))}")
    designs = arguments.designs or list(DESIGNS)
    expected = None if arguments.check is None else digests_of(arguments.check, designs)
    actual: dict[str, Any] = {}
    different = []
    for design in designs:
        actual[design] = train(design)
        same = ""
        if expected is not None and expected.get(design) == actual[design]:
            same = "  equal"
        elif expected is not None:
            same = f"  DIFFERS: {expected.get(design)}"
            different.append(design)
        print(f"{design:24}", *(f"{k} {v}" for k, v in actual[design].items()), same, flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(actual, indent=2) + "\n")
    if expected is not None:
        print(f"{len(designs) - len(different)} of {len(designs)} designs equal", *different)
    return 1 if different else 0


def digests_of(source: str, designs: list[str]) -> dict[str, Any]:
    """Return digests from a JSON file, or by running a commit's own script in a worktree."""
    if source and Path(source).is_file():
        return json.loads(Path(source).read_text())
    if not source:
        source = "HEAD" if git("status", "--porcelain") else "HEAD~1"
    with tempfile.TemporaryDirectory() as temporary:
        tree, out = Path(temporary) / "tree", Path(temporary) / "digests.json"
        git("worktree", "add", "--detach", str(tree), source)
        try:
            script = tree / "scripts" / "numbers.py"
            assert script.is_file(), f"{source} has no scripts/numbers.py"
            print(f"training the designs of {source} ...", flush=True)
            command = [sys.executable, str(script), "--out", str(out), *designs]
            if subprocess.run(command, cwd=tree).returncode:
                sys.exit(f"{source}: its script failed; name designs that it has")
            return json.loads(out.read_text())
        finally:
            git("worktree", "remove", "--force", str(tree))


def train(design: str) -> dict[str, Any]:
    """Train a design in a temporary directory; return its last loss and its digests."""
    from minigpt.cli import main as minigpt

    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"

        def command(*overrides: str) -> None:
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = minigpt(["train", *overrides])
            assert code == 0, f"{design}: exit code {code}\n{output.getvalue()}"

        arguments = [*COMMON, *DESIGNS[design], f"data.dir={REPOSITORY / 'data'}"]
        if design.startswith("resume"):
            command(*arguments, f"hydra.run.dir={run}", "trainer.max_steps=10")
            command(f"resume={run}", f"trainer.max_steps={STEPS}")
        elif "-m" in arguments:
            command(*arguments, f"hydra.sweep.dir={run}")
        else:
            command(*arguments, f"hydra.run.dir={run}")
        return digest(run)


def digest(folder: Path) -> dict[str, Any]:
    """Return the last validation loss, and digests of losses, samples and weights in a folder."""
    from minigpt.files import sha256

    losses, samples, weights, last = [], "", [], math.nan
    for metrics in sorted(folder.rglob("metrics.jsonl")):
        for line in metrics.read_text().splitlines():
            row = json.loads(line)
            names = sorted(k for k in row if k.endswith(("loss", "norm", "lr")) or "usage" in k)
            losses.append([row["step"], *((name, row[name]) for name in names)])
            last = row.get("val_loss", last)
        text = metrics.parent / "samples.txt"  # missing if a run stopped early
        samples += text.read_text() if text.exists() else ""
        weights.append(weights_digest(metrics.parent / "checkpoints/last/model.safetensors"))
    return {
        "val_loss": round(last, 4),
        "losses": sha256(json.dumps(losses))[:12],
        "samples": sha256(samples)[:12],
        "weights": sha256("".join(weights))[:12],
    }


def weights_digest(file: Path) -> str:
    """Return a digest of the tensors in a file that does not depend on their names or order."""
    from safetensors.torch import load_file

    from minigpt.files import sha256

    tensors = load_file(file).values()
    each = [sha256(f"{tuple(x.shape)}".encode() + x.numpy().tobytes()) for x in tensors]
    return sha256("".join(sorted(each)))


def git(*arguments: str) -> str:
    """Run a git command in this repository and return its output."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    os.environ["WANDB_MODE"] = "offline"
    # Import this tree's package, and not this file instead of the standard library's `numbers`.
    sys.path[0] = str(REPOSITORY)
    sys.exit(main())
