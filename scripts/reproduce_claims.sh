#!/usr/bin/env bash
# The posts' claims: trains what each needs, five seeds a design, and writes docs/claims.md.
#   scripts/reproduce_claims.sh                       # on two CPU cores
#   CLAIMS="norm heads" scripts/reproduce_claims.sh   # some of them; writes runs/claims/claims.md
#   scripts/reproduce_claims.sh runs/gpu docs/claims_gpu.md trainer.max_steps=5000 model.n_embd=256
# Called again, it goes on with what is missing. More arguments are overrides for all runs. LAUNCHER
# is one of Hydra's; SEARCHES and TRIALS are the seeds and the size of the searches that stop early.
set -euo pipefail
DIR=${1:-runs/claims}
OUT=${2:-${CLAIMS:+$DIR/claims.md}}  # some claims do not replace the page of all
OUT=${OUT:-docs/claims.md}
ARGS=("${@:3}")
LAUNCHER=${LAUNCHER:-joblib} SEARCHES=${SEARCHES:-1 2 3 4 5} TRIALS=${TRIALS:-8}
POSITIONAL="inside_blocks alike parameters beyond learned_sinusoidal"  # claims that share runs
CLAIMS=${CLAIMS:-$POSITIONAL bigram tying norm heads tokenizer backend early_stopping}
here=$(cd "$(dirname "$0")" && pwd)

sweep() {  # experiment, folder
  minigpt train -m experiment="claims/$1" "hydra/launcher=$LAUNCHER" logger=none \
    hydra.sweep.dir="$DIR/$2" "${ARGS[@]}" || {
    local code=$?  # 1: some failed, as what diverges does; 2: bad input; more: a signal
    if [ "$code" != 1 ]; then exit "$code"; fi
    echo "$1: not all runs are done" >&2
  }
}
at_lengths() {  # run
  local block
  block=$(sed -n 's/^  block_size: //p' "$1/config.yaml")
  grep -qs '"lengths"' "$1/eval.json" || minigpt eval "$1" --checkpoint last \
    --lengths "$block,$((2 * block)),$((4 * block)),$((8 * block))" > "$1/eval.log"
}
export -f at_lengths
search() {  # scheduler, seed
  local folder="$DIR/early_stopping/$1_$2"
  grep -qs '^  "status": "finished"' "$folder/tune.json" || minigpt tune experiment=claims/early_stopping model=rope,alibi \
    'optimizer.lr=tag(log,interval(3e-4,3e-2))' logger=none --search random --trials "$TRIALS" \
    --seed "$2" --scheduler "$1" --dir "$folder" "${ARGS[@]}"
}

for claim in $CLAIMS; do
  if [ ! -f "$here/../configs/experiment/claims/$claim.yaml" ]; then
    echo "CLAIMS: $claim is no claim; see configs/experiment/claims/" >&2 && exit 2
  fi
done
shared=yes
for claim in $CLAIMS; do
  case "$shared $POSITIONAL bigram " in yes*" $claim "*) sweep inside_blocks positional; shared=done ;; esac
  case $claim in
    beyond) printf '%s\0' "$DIR"/positional/positional={alibi,rope,sinusoidal,t5}_seed=* |
      OMP_NUM_THREADS=1 xargs -0 -n 1 -P "$(getconf _NPROCESSORS_ONLN)" bash -euc 'at_lengths "$0"' ;;
    bigram | tying | norm | heads | tokenizer) sweep "$claim" "$claim" ;;
    early_stopping) for seed in $SEARCHES; do search none "$seed"; search asha "$seed"; done ;;
  esac
done
python "$here/claims.py" "$DIR" "$OUT" "${ARGS[@]}" --claims "$CLAIMS"
