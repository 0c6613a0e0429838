#!/usr/bin/env python3
"""Makes mix.json.gz: the types that llama-quantize gives the tensors of small models.

    python3 make.py LISA_CPP LLAMA_QUANTIZE

Tensors of one module get a list by layer, the others stand alone.
"""

import gzip
import json
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
RECIPES = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K_S", "Q4_K_M", "Q4_1", "Q5_0",
           "Q5_K_S", "Q5_K_M", "Q5_1", "Q6_K", "Q8_0", "F16", "BF16", "F32", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S",
           "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "TQ1_0", "TQ2_0", "Q2_0", "MXFP4_MOE"]
MODELS = {
    # An output head of its own, four query heads per key/value head.
    "grouped": "--like llama3-8b --layers 34 --n-embd 256 --n-head 4 --n-head-kv 1 --n-ff 512 --n-vocab 400 --ctx 64",
    # Embeddings that are the output head too, rows that do not divide into blocks of 256 or of 32.
    "tied": "--like smollm2-135m --layers 9 --n-embd 96 --n-head 3 --n-head-kv 1 --n-ff 208 --n-vocab 400 --ctx 64",
    # 80 layers, whose value projections are small.
    "deep": "--like llama3-8b --layers 80 --n-embd 256 --n-head 4 --n-head-kv 2 --n-ff 256 --n-vocab 400 --ctx 64",
}
LINE = re.compile(r"\] +(\S+) +- \[.*\], type = +(\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?")


def types(quantize, path, recipe):
    run = subprocess.run([quantize, "--dry-run", path, recipe], capture_output=True, text=True, check=True)
    found = {}
    for name, was, to in LINE.findall(run.stdout + run.stderr):
        module = re.sub(r"^blk\.\d+\.", "blk.*.", name)
        layer = int(name.split(".")[1]) if name != module else 0
        found.setdefault(module, {})[layer] = (to or was).upper()
    return {m: [of[i] for i in range(len(of))] for m, of in found.items() if "norm" not in m}


def main():
    lisa_cpp, quantize = sys.argv[1:]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, args in MODELS.items():
            path = f"{folder}/{name}.gguf"
            subprocess.run([lisa_cpp, "synth", *args.split(), "--type", "F16", "-o", path], check=True)
            result[name] = {"args": args, "types": {r: types(quantize, path, r) for r in RECIPES}}
    data = json.dumps(result, separators=(",", ":")).encode()
    (HERE / "mix.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    main()
