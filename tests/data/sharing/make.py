#!/usr/bin/env python3
"""Writes the sidecars and reference logits of this folder, and the deeper tiny models that some of them need.

    make.py          writes everything beside itself, and says how far each part and each wrong reading moves the logits

Needs `numpy` and `gguf` from PyPI. Every value is drawn from a generator seeded by the case's name.
"""
import copy
import gzip
import importlib.util
import json
import sys
import tempfile
import zlib
from pathlib import Path

import gguf
import numpy as np

import reference
from reference import Model, Plan, layer_of, run

HERE = Path(__file__).resolve().parent
FAMILIES = HERE.parent / "families"
spec = importlib.util.spec_from_file_location("families", FAMILIES / "make.py")
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

# The least that taking a part out, or reading the definition wrongly, must move some logit, in units of the spread.
MATTERS = 0.05
# The most that F32 arithmetic may move a logit: what the engine's tests allow leaves room beside it.
ROUNDING = 3e-5

SHIFTED = (70, 8, (48, 5, 17))


def deep_models():
    gemma = dict(qk_norm=True, sandwich=True, tied=True, freq_base=1000000.0, eps=1e-6)
    return [
        families.Tiny("llama_deep", "llama", n_layer=12, n_ff=24, tied=True),
        families.Tiny("gemma3_capped", "gemma3", n_layer=5, n_head_kv=1, head_dim=32, n_ff=32, keys={
            "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True, False, True],
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}, **gemma),
        # As wide a window as real models have: it begins between the blocks and runs that keys are worked on in.
        families.Tiny("gemma3_wide", "gemma3", n_layer=7, n_head_kv=2, head_dim=16, n_ff=16, keys={
            "attention.sliding_window": 600, "attention.sliding_window_pattern": [True] * 7}, **gemma),
    ]


def lisa(source, rank=6, hidden=6, f16=False):
    return dict(kind="lisa", source=source, rank=rank, hidden=hidden, f16=f16)


def shared(source, comp=False):
    return dict(kind="shared", source=source, comp=comp)


def kv(source):
    return dict(kind="kv", source=source)


FULL = dict(kind="full", source=-1)


def random_plan(n_layer, seed):
    """Kinds and sources at random, so that layers read, leave and outlive each other's weights in every order."""
    rng = np.random.default_rng(seed)
    layers = [FULL]
    for i in range(1, n_layer):
        source = int(rng.integers(max(0, i - 4), i))
        home = source
        while layers[home]["kind"] == "kv":
            home = layers[home]["source"]
        kind = rng.choice(["full", "shared", "lisa", "kv"], p=[0.1, 0.4, 0.35, 0.15])
        if kind == "shared":
            layers.append(shared(source))
        elif kind == "lisa":
            layers.append(lisa(source, rank=4, hidden=int(rng.choice([0, 3]))))
        elif kind == "kv" and layers[home]["kind"] == "full":
            layers.append(kv(source))
        else:
            layers.append(FULL)
    return layers


def cases():
    """(name, base model, layers, the alignment's settings, runs). A run: number of tokens, every how many positions
    logits are kept, and for a context shift after how many tokens, how many are kept, how many are discarded."""
    plain, shifted = [(70, 4, None)], [(70, 4, None), SHIFTED]
    chain = [FULL, lisa(0), shared(1), lisa(2, rank=4, hidden=0), lisa(3, rank=0, hidden=3), shared(4)]
    sources = [FULL, FULL, lisa(0), shared(0), lisa(1, rank=8, hidden=0), lisa(2, rank=2, hidden=9)]
    wide = [FULL, shared(0), shared(1, comp=True), FULL, lisa(3, rank=4, hidden=4), shared(4), shared(5)]
    deep = lambda layers: layers + [FULL] * (12 - len(layers))
    return [
        ("llama_gqa", "llama", [FULL, lisa(0), lisa(1)], {}, shifted),
        ("llama_mha", "llama_mha_tied", [FULL, lisa(0, rank=4, hidden=5), shared(1)], {},
         [(70, 4, None), (1100, 110, None)]),
        ("llama_mqa", "llama_mqa", [FULL, lisa(0, rank=8, f16=True), lisa(1, rank=10, hidden=7, f16=True)], {}, plain),
        ("llama_head_dim", "llama_head_dim", [FULL, lisa(0, rank=10, hidden=16), FULL], {}, plain),
        ("weight_domain", "llama", [FULL, lisa(0), lisa(1)], dict(domain="weight"), shifted),
        ("relu", "llama", [FULL, lisa(0, hidden=8), lisa(1)], dict(activation="relu"), plain),
        ("gelu", "llama", [FULL, lisa(0, hidden=8), lisa(1)], dict(activation="gelu"), plain),
        ("linear", "llama", [FULL, lisa(0, hidden=0), lisa(1, hidden=0)], dict(scale=0.4), plain),
        ("rank0", "llama", [FULL, lisa(0, rank=0), lisa(1, rank=0, hidden=0)], {}, shifted),
        ("chain", "llama_deep", deep(chain), {}, shifted),
        ("sources", "llama_deep", deep(sources), {}, plain),
        ("comp", "llama", [FULL, shared(0, comp=True), shared(1, comp=True)], {}, plain),
        ("shared", "llama_bias", [FULL, shared(0), shared(0)], {}, plain),
        ("kv", "llama_deep", deep([FULL, kv(0), kv(1), shared(2), lisa(1), kv(0)]), {}, shifted),
        ("kv_shared", "llama_mqa", [FULL, kv(0), shared(1)], {}, plain),
        ("qwen2", "qwen2", [FULL, lisa(0), kv(0)], {}, shifted),
        ("qwen3", "qwen3", [FULL, kv(0), lisa(1)], {}, plain),
        ("gemma3", "gemma3", [FULL, lisa(0), shared(1, comp=True), kv(0), lisa(2, rank=8, hidden=8), FULL, lisa(4)],
         {}, shifted),
        ("gemma3_capped", "gemma3_capped", [FULL, FULL, lisa(0, hidden=8), lisa(1, hidden=0), shared(0)], {}, plain),
        ("gemma3_wide", "gemma3_wide", wide, {}, [(70, 4, None), (1112, 139, None)]),
        ("random_1", "llama_deep", random_plan(12, 1), {}, plain),
        ("random_2", "llama_deep", random_plan(12, 2), {}, [(70, 4, None), (600, 60, None)]),
        ("random_3", "llama_deep", random_plan(12, 3), dict(domain="weight"), plain),
        ("random_4", "llama_deep", random_plan(12, 4), dict(domain="weight"), [(70, 4, None), (600, 60, None)]),
        ("phi3", "phi3", [FULL, lisa(0), shared(1)], {}, plain),
        ("phi3_partial", "phi3_partial_tied", [FULL, kv(0), lisa(1)], {}, plain),
    ]


class Case:
    def __init__(self, name, base, model, layers, settings, runs):
        self.name, self.base, self.model, self.layers = name, base, model, layers
        self.rng = np.random.default_rng(zlib.crc32(f"sharing {name}".encode()))
        settings = {"scale": float(np.float32(1 / np.sqrt(model.head_dim))), **settings}
        self.plan = Plan([(l["kind"], l["source"]) for l in layers], **settings)
        for i, layer in enumerate(layers):
            self.draw(i, layer)
        ids = lambda n: [1] + self.rng.integers(3, len(model.tensors["token_embd.weight"]), n - 1).tolist()
        self.runs = [(ids(n), every, shift, 2048 if n > 512 else 512) for n, every, shift in runs]

    def grid(self, shape, std, mean=0.0):
        """Normal values on a power-of-two grid, exact in F16 and small when packed."""
        step = 2.0 ** np.floor(np.log2(std / 8))
        return (np.round((mean + self.rng.normal(0, std, shape)) / step) * step).astype(np.float32)

    def draw(self, i, layer):
        """Logarithms of weights are around -4: the alignment's gains leave scores with a standard deviation of
        about 2. Weights are around 0.1, so that domain takes larger gains."""
        m, t = self.model, self.plan.tensors
        add = lambda name, tensor: t.__setitem__(f"blk.{i}.lisa_{name}", tensor)
        if layer.get("comp"):
            add("comp.weight", self.grid((m.n_embd, m.n_embd), 1.0 / np.sqrt(m.n_embd)))
        if layer["kind"] != "lisa":
            return
        gain = 1.0 if self.plan.domain == "log" else 8.0
        add("align_skip.weight", self.grid((m.n_head, m.n_head), 0.25 * gain) + np.float32(0.5 * gain) * np.eye(
            m.n_head, dtype=np.float32))
        if layer["hidden"]:
            add("align_up.weight", self.grid((m.n_head, layer["hidden"]), 0.3 * gain))
            add("align_up.bias", self.grid((layer["hidden"],), 1.5))
            add("align_down.weight", self.grid((layer["hidden"], m.n_head), 0.9))
        if layer["rank"]:
            r, std = layer["rank"], 1.6 / np.sqrt(m.n_embd)
            dtype = np.float16 if layer["f16"] else np.float32
            add("q.weight", self.grid((m.n_head * r, m.n_embd), std).astype(dtype))
            add("k.weight", self.grid((m.n_head_kv * r, m.n_embd), std).astype(dtype))
            add("freq.weight", (10.0 ** self.rng.uniform(-1.5, 0.0, (m.n_head_kv, r // 2))).astype(np.float32))

    def write_sidecar(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sidecar"
            w = gguf.GGUFWriter(path, self.model.arch)
            w.add_string("general.type", "adapter")
            w.add_string("adapter.type", "lisa")
            w.add_uint32("lisa.version", 1)
            w.add_string("lisa.base.fingerprint", self.model.fingerprint())
            kinds, sources = zip(*self.plan.layers)
            ranks = [self.plan.rank(i, self.model.n_head) for i in range(len(kinds))]
            array, types = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType
            w.add_array("lisa.layer.kind", list(kinds))
            w.add_key_value("lisa.layer.source", list(sources), array, sub_type=types.INT32)
            w.add_key_value("lisa.layer.rank", ranks, array, sub_type=types.UINT32)
            w.add_string("lisa.align.activation", self.plan.activation)
            w.add_string("lisa.align.domain", self.plan.domain)
            w.add_float32("lisa.scale", self.plan.scale)
            for name, tensor in self.plan.tensors.items():
                w.add_tensor(name, tensor)
            w.write_header_to_file()
            w.write_kv_data_to_file()
            w.write_tensors_to_file()
            w.close()
            (HERE / f"{self.name}.lisa.gguf.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))

    def changed(self):
        """The plan with one thing wrong at a time: (what, plan)."""
        for name, tensor in self.plan.tensors.items():
            layer, part = layer_of(name), name.split("lisa_")[1]
            with_this = lambda t: self.with_tensor(name, np.ascontiguousarray(t))
            yield f"layer {layer}: {part} is zero", with_this(np.zeros_like(tensor))
            if part in ("align_skip.weight", "comp.weight"):
                yield f"layer {layer}: {part} transposed", with_this(tensor.T)
            if part in ("align_up.weight", "align_down.weight"):
                yield f"layer {layer}: {part} of the other order", with_this(tensor.T.reshape(tensor.shape))
            heads = {"q.weight": self.model.n_head, "k.weight": self.model.n_head_kv}.get(part, 1)
            if heads > 1:
                by_rank = tensor.reshape(heads, -1, tensor.shape[1]).swapaxes(0, 1).reshape(tensor.shape)
                yield f"layer {layer}: {part} rows by rank, then head", with_this(by_rank)
            if part == "freq.weight" and len(tensor) > 1:
                yield f"layer {layer}: {part} of the other heads", with_this(tensor[::-1])
            if part == "freq.weight" and min(tensor.shape) > 1:
                yield f"layer {layer}: {part} of the other order", with_this(tensor.T.reshape(tensor.shape))
        for i, (kind, source) in enumerate(self.plan.layers):
            same_window = lambda s: self.model.window(s) == self.model.window(i)
            others = {s for s in range(i) if self.reads_differently(kind, source, s) and same_window(s)}
            for other in others:
                wrong = copy.deepcopy(self.plan)
                wrong.layers[i] = (kind, other)
                yield f"layer {i}: source {other} for {source}", wrong
            if kind != "full":
                wrong = copy.deepcopy(self.plan)
                wrong.layers[i] = ("full", -1)
                yield f"layer {i}: full", wrong
        has = lambda part: any(part in name for name in self.plan.tensors)
        settings = []
        if has("align_skip"):
            settings += [("domain", d) for d in ("log", "weight")]
        if has("align_up"):
            settings += [("activation", a) for a in reference.ACTIVATIONS]
        if has("lisa_q"):
            settings += [("neox_pairs", True), ("scale", 1.0)]
        if has("lisa_comp") and self.model.arch == "gemma3":
            settings.append(("comp_after_norm", True))
        if self.model.softcap:
            settings.append(("uncapped", True))
        for key, value in settings:
            if getattr(self.plan, key) != value:
                wrong = copy.deepcopy(self.plan)
                setattr(wrong, key, value)
                yield f"{key} {value}", wrong

    def reads_differently(self, kind, source, other):
        """True where `other` is a possible source of the layer, and not the same one by way of a chain."""
        def origin(layer):
            k, s = self.plan.layers[layer]
            return origin(s) if k == ("kv" if kind == "kv" else "shared") else layer
        if kind == "full" or origin(other) == origin(source):
            return False
        return kind != "kv" or self.plan.layers[origin(other)][0] == "full"

    def with_tensor(self, name, tensor):
        wrong = copy.deepcopy(self.plan)
        wrong.tensors[name] = tensor
        return wrong

    def check(self, logits):
        """That every part matters in the first run, and that F32 arithmetic is good enough for all of them."""
        ids, every, shift, n_ctx = self.runs[0]
        kept = kept_positions(len(ids), every, shift)
        reference_logits = logits[0][kept]
        least = (np.inf, "")
        # Random plans are about layers; the other cases are about what a layer has.
        for what, wrong in self.changed() if not self.name.startswith("random") else ():
            if "full" in what and not self.has_exact(wrong):
                continue
            moved = np.abs(run(self.model, wrong, ids, n_ctx)[kept] - reference_logits).max() / reference_logits.std()
            least = min(least, (moved, what))
            if not moved >= MATTERS:
                sys.exit(f"{self.name}: {what}: moves the logits by only {moved:.4f} of their spread")
        worst = 0.0
        for (ids, every, shift, n_ctx), exact in zip(self.runs, logits):
            kept = kept_positions(len(ids), every, shift)
            single = run(self.model, self.plan, ids, n_ctx, shift, np.float32)
            worst = max(worst, np.abs(single - exact)[kept].max() / exact[kept].std())
        if not worst <= ROUNDING:
            sys.exit(f"{self.name}: F32 arithmetic moves the logits by {worst:.1e} of their spread")
        least = f", least {least[0]:.3f} ({least[1]})" if least[1] else ""
        print(f"{self.name:15} spread {reference_logits.std():.2f}, F32 {worst:.1e}{least}")

    def has_exact(self, plan):
        """A layer made `full` where a chain of `kv` ends at another would leave it without keys of its own."""
        return all(k != "kv" or plan.layers[s][0] in ("full", "kv") for k, s in plan.layers)

    def make(self):
        logits = [run(self.model, self.plan, ids, n_ctx, shift) for ids, _, shift, n_ctx in self.runs]
        self.check(logits)
        self.write_sidecar()
        runs = []
        for (ids, every, shift, n_ctx), rows in zip(self.runs, logits):
            positions = kept_positions(len(ids), every, shift)
            runs.append({
                "n_ctx": n_ctx,
                "ids": ids,
                **({"shift": dict(zip(("at", "n_keep", "n_discard"), shift))} if shift else {}),
                "positions": positions,
                "logits": [[float(f"{x:.7g}") for x in rows[p].tolist()] for p in positions],
            })
        text = json.dumps({"base": self.base, "runs": runs}, separators=(",", ":"))
        (HERE / f"{self.name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def kept_positions(n, every, shift):
    """Every `every`-th, and the last; after a context shift only those behind it."""
    first = shift[0] if shift else 0
    return sorted({p for p in range(first, n) if p % every == every - 1} | {n - 1})


def check_families(folder):
    """The forward pass without a plan against llama.cpp's logits for every model of `../families`."""
    worst = 0.0
    for packed in sorted(FAMILIES.glob("*.gguf.gz")):
        name = packed.name.removesuffix(".gguf.gz")
        model = unpacked(packed, folder)
        for r in json.loads(gzip.decompress((FAMILIES / f"{name}.json.gz").read_bytes()))["runs"]:
            shift = r.get("shift") and tuple(r["shift"][k] for k in ("at", "n_keep", "n_discard"))
            theirs, ours = np.array(r["logits"]), run(model, None, r["ids"], r["n_ctx"], shift)[r["positions"]]
            error = np.abs(ours - theirs).max() / theirs.std()
            worst = max(worst, error)
            if not error <= 1e-4:
                sys.exit(f"{name}: without a plan, differs from llama.cpp by {error:.1e} of the spread")
    print(f"without a plan: at most {worst:.1e} of the spread from llama.cpp")


def unpacked(packed, folder):
    path = folder / packed.name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return Model(path)


def main():
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        check_families(folder)
        for model in deep_models():
            path = folder / f"{model.name}.gguf"
            model.write(path)
            (HERE / f"{model.name}.gguf.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
        for name, base, *rest in cases():
            packed = next(f for f in (HERE / f"{base}.gguf.gz", FAMILIES / f"{base}.gguf.gz") if f.exists())
            Case(name, base, unpacked(packed, folder), *rest).make()


if __name__ == "__main__":
    main()
