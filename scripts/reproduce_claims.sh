#!/usr/bin/env bash
# The posts' claims: trains what each needs, five seeds a design, and writes docs/claims.md.
#   scripts/reproduce_claims.sh                       # on two CPU cores
#   scripts/reproduce_claims.sh runs/gpu docs/claims_gpu.md trainer.max_steps=5000 model.n_embd=256
# Called again, it goes on with what is missing. More arguments are overrides for all runs; LAUNCHER
# is one of Hydra's, SEARCHES how many searches test early stopping.
set -euo pipefail
DIR=${1:-runs/claims} OUT=${2:-docs/claims.md}
ARGS=("${@:3}")
LAUNCHER=${LAUNCHER:-joblib} SEARCHES=${SEARCHES:-1 2 3 4 5} TRIALS=${TRIALS:-8}
here=$(cd "$(dirname "$0")" && pwd)

sweep() {  # experiment, folder: claims that need the same runs share one
  minigpt train -m experiment="claims/$1" "hydra/launcher=$LAUNCHER" logger=none \
    hydra.sweep.dir="$DIR/$2" "${ARGS[@]}" || echo "$1: not all runs are done" >&2
}
for claim in inside_blocks alike parameters beyond learned_sinusoidal; do sweep "$claim" positional; done
for claim in bigram tying norm heads tokenizer; do sweep "$claim" "$claim"; done

block=$(sed -n 's/^  block_size: //p' "$DIR/positional/positional=rope_seed=1/config.yaml")
for scheme in alibi rope sinusoidal t5; do
  for run in "$DIR/positional/positional=$scheme"_seed=*; do
    grep -qs '"lengths"' "$run/eval.json" ||
      minigpt eval "$run" --checkpoint last --lengths "$block,$((2 * block)),$((4 * block)),$((8 * block))" > "$run/eval.log"
  done
done

for seed in $SEARCHES; do
  for scheduler in none asha; do
    [ -e "$DIR/early_stopping/${scheduler}_$seed/best.yaml" ] ||
      minigpt tune experiment=claims/early_stopping 'optimizer.lr=tag(log,interval(3e-4,3e-2))' model=rope,alibi \
        logger=none --search random --trials "$TRIALS" --seed "$seed" --scheduler "$scheduler" \
        --dir "$DIR/early_stopping/${scheduler}_$seed" "${ARGS[@]}"
  done
done
python "$here/claims.py" "$DIR" "$OUT"
