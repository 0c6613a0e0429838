#!/usr/bin/env bash
# The variants of a sidecar compared on one text: prints a table.
#
#     docs/lisa-ablation.sh TEXT [MODEL] [LAYERS] [STEPS] [PROGRAM]
#
# MODEL may be empty: the embedded one. Every row is a run of `lisa-cpp distill` with the same text, order and steps.
set -euo pipefail
text=$1 model=${2:-} layers=${3:-2,3} steps=${4:-300} program=${5:-lisa-cpp}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

row() {
    local name=$1; shift
    "$program" distill ${model:+-m "$model"} -f "$text" --layers "$layers" --steps-attention $((steps / 3)) \
        --steps "$steps" --eval-every "$steps" --held-out 16 -o "$work/x.lisa.gguf" --json --log-disable "$@" > "$work/log"
    python3 - "$name" "$work/log" <<'PY'
import json, sys
events = [json.loads(line) for line in open(sys.argv[2])]
start, end = events[0], events[-1]
unchanged = end["perplexity_unchanged"]
stage1 = [e for e in events if e["event"] == "held_out" and e["stage"] == "attention"]
after = f"{stage1[-1]['kl']:.4f}" if stage1 else "-"
print(f"| {sys.argv[1]} | {start['kl']:.4f} | {after} | {end['kl']:.4f} | {end['perplexity'] / unchanged:.3f} |", flush=True)
PY
}

echo "| variant | KL before training | after stage 1 | after stage 2 | perplexity, x unchanged |"
echo "|---|---|---|---|---|"
row "linear, rank 6x" --rank 6x
row "linear, rank 3x" --rank 3x
row "linear, rank 2x" --rank 2x
row "no low-rank part" --rank 0
row "hidden units, 8, SiLU" --rank 6x --hidden 8
row "hidden units, 8, ReLU" --rank 6x --hidden 8 --activation relu
row "hidden units, 16, SiLU" --rank 6x --hidden 16
row "weights instead of logarithms" --rank 6x --domain weight
row "nearest full layer as source" --rank 6x --source full
row "stage 2 alone" --rank 6x --steps-attention 0
row "stage 1 alone" --rank 6x --steps 0
row "Shared Attention, untrained" --kind shared --no-comp
row "Shared Attention, compensation" --kind shared
