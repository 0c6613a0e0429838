#!/usr/bin/env bash
# The variants of a sidecar compared on one text: prints the table of lisa-ablation.md.
#
#     docs/lisa-ablation.sh TEXT [MODEL] [LAYERS] [STEPS] [PROGRAM]
#
# MODEL may be empty: the embedded one. Every row is a run of `lisa-cpp distill` with the same text, order and steps: STEPS of stage
# 1 and a third of that of stage 2. More flags for every run: in FLAGS.
set -euo pipefail
text=$1 model=${2:-} layers=${3:-2,3} steps=${4:-300} program=${5:-lisa-cpp}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

row() {
    local name=$1; shift
    # shellcheck disable=SC2086
    "$program" distill ${model:+-m "$model"} -f "$text" --layers "$layers" -c 256 --steps-attention "$steps" --steps $((steps / 3)) \
        --eval-every 100000 ${FLAGS:-} -o "$work/x.lisa.gguf" --json --log-disable "$@" > "$work/log"
    python3 - "$name" "$work/log" <<'PY'
import json, sys
events = [json.loads(line) for line in open(sys.argv[2])]
start, end = events[0], events[-1]
unchanged = end["perplexity_unchanged"]
stage1 = [e for e in events if e["event"] == "held_out" and e["stage"] == "attention"]
after = f"{stage1[-1]['kl']:.3f}" if stage1 else "-"
print(f"| {sys.argv[1]} | {start['kl']:.3f} | {after} | {end['kl']:.3f} | {end['perplexity'] / unchanged:.3f} |", flush=True)
PY
}

echo "| variant | KL before training | after stage 1 | after stage 2 | perplexity, x unchanged |"
echo "|---|---|---|---|---|"
row "linear, rank 6x"
row "linear, rank 3.2x" --rank 3.2x
row "hidden units, H, SiLU" --hidden 9
row "hidden units, 2 H, SiLU" --hidden 18
row "weights instead of logarithms" --domain weight
row "the layer before as source" --source chain
row "no low-rank part" --rank 0
row "stage 2 alone" --steps-attention 0 --steps "$steps"
row "Shared Attention, untrained" --kind shared --no-comp
row "Shared Attention, compensation" --kind shared
