"""A forward pass in float64 over the models of `../families` with attention sharing, written from the published
definitions of the families and from section 2 of the specification of the extension. Slow and plain on purpose: it is
what the engine is judged by, so it shares nothing with it.
"""
import hashlib
import re

import gguf
import numpy as np

NEOX = {"qwen2", "qwen3", "gemma3", "phi3"}


class Model:
    """Metadata and tensors of a GGUF file with float weights."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = self.keys["general.architecture"]
        self.tensors = {t.name: np.array(t.data, dtype=np.float32).reshape([int(n) for n in reversed(t.shape)])
                        for t in reader.tensors}
        self.n_layer, self.n_embd = self.key("block_count"), self.key("embedding_length")
        self.n_head = self.key("attention.head_count")
        self.n_head_kv = self.key("attention.head_count_kv", self.n_head)
        self.head_dim = self.key("attention.key_length", self.n_embd // self.n_head)
        self.n_rot = self.key("rope.dimension_count", self.head_dim)
        self.eps = self.key("attention.layer_norm_rms_epsilon")
        self.softcap = self.key("attn_logit_softcapping")
        self.final_softcap = self.key("final_logit_softcapping")

    def key(self, name, default=None):
        return self.keys.get(f"{self.arch}.{name}", default)

    def window(self, layer):
        """Positions a query of `layer` sees, itself included; None: all. Only Gemma's windows are applied."""
        if self.arch != "gemma3" or not self.key("attention.sliding_window"):
            return None
        pattern = self.key("attention.sliding_window_pattern", 6)
        local = pattern[layer] if isinstance(pattern, list) else (layer + 1) % pattern != 0
        return self.key("attention.sliding_window") if local else None

    def rope(self, layer, n_ctx):
        """Radians per position of every pair, and the factor on the rotated values."""
        pairs = np.arange(self.n_rot // 2)
        if self.window(layer):
            return self.key("rope.freq_base_swa", 10000.0) ** (-2.0 * pairs / self.n_rot), 1.0
        base = self.key("rope.freq_base", 10000.0)
        freq, magnitude = base ** (-2.0 * pairs / self.n_rot), self.key("rope.scaling.attn_factor", 1.0)
        original = self.key("rope.scaling.original_context_length", self.key("context_length"))
        for name in ("rope_freqs", f"rope_factors_{'long' if n_ctx > original else 'short'}"):
            if f"{name}.weight" in self.tensors:
                freq = freq / self.tensors[f"{name}.weight"].astype(np.float64)
        factor = self.key("rope.scaling.factor", self.key("rope.scale_linear", 1.0))
        kind = self.key("rope.scaling.type", "linear")
        if kind == "linear":
            freq = freq / factor
        elif kind == "yarn":  # arXiv 2309.00071, section 3.2 and equation 22
            turns = lambda n: self.n_rot * np.log(original / (n * 2 * np.pi)) / (2 * np.log(base))
            low, high = max(np.floor(turns(32.0)), 0.0), min(np.ceil(turns(1.0)), self.n_rot - 1.0)
            keep = 1.0 - np.clip((pairs - low) / max(high - low, 0.001), 0.0, 1.0)
            freq = freq / factor * (1.0 - keep) + freq * keep
            magnitude *= 1.0 + 0.1 * np.log(factor)
        return freq, magnitude

    def fingerprint(self):
        names = [f"blk.{i}.attn_norm.weight" for i in range(self.n_layer)] + ["output_norm.weight"]
        return hashlib.sha256(b"".join(self.tensors[n].astype("<f4").tobytes() for n in names)).hexdigest()


class Plan:
    """A sharing plan: (kind, source) per layer, the alignment's settings, and the tensors under their names in files.

    The last three say how the text is read; only the checks of make.py read it wrongly, on purpose.
    """

    def __init__(self, layers, activation="silu", domain="log", scale=1.0, tensors=None):
        self.layers, self.activation, self.domain, self.scale = layers, activation, domain, scale
        self.tensors = tensors or {}
        self.neox_pairs = self.comp_after_norm = self.uncapped = False

    def part(self, layer, name):
        return self.tensors.get(f"blk.{layer}.lisa_{name}")

    def rank(self, layer, n_head):
        q = self.part(layer, "q.weight")
        return 0 if q is None else len(q) // n_head


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
}


def turn(x, angles, neox):
    """Rotates the first 2 * n values of x [T, heads, d] in pairs by angles [T, 1 or heads, n]."""
    n = angles.shape[-1]
    first, second = (slice(0, n), slice(n, 2 * n)) if neox else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
    out, a, b, cos, sin = x.copy(), x[..., first], x[..., second], np.cos(angles), np.sin(angles)
    out[..., first], out[..., second] = (a * cos - b * sin).astype(x.dtype), (a * sin + b * cos).astype(x.dtype)
    return out


def log_softmax(scores, seen):
    """Logarithms of the weights over the positions seen; -inf elsewhere."""
    scores = np.where(seen, scores, -np.inf)
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


class Pass:
    """One sequence on its way through a model. Keys are cached without their rotation, so that a context shift only
    has to forget rows: what remains is turned by the positions it has then."""

    def __init__(self, model, plan=None, n_ctx=512, dtype=np.float64):
        self.m, self.n_ctx, self.dtype = model, n_ctx, dtype
        self.plan = plan or Plan([("full", -1)] * model.n_layer)
        self.t = {k: v.astype(dtype) for k, v in {**model.tensors, **self.plan.tensors}.items()}
        self.caches = [{} for _ in range(model.n_layer)]
        self.n_past = 0

    def shift(self, n_keep, n_discard):
        for cache in self.caches:
            for name, rows in cache.items():
                cache[name] = np.delete(rows, np.s_[n_keep:n_keep + n_discard], axis=0)
        self.n_past -= n_discard

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.dtype(self.m.eps)) * self.t[name]

    def linear(self, x, name):
        y = x @ self.t[f"{name}.weight"].T
        return y + self.t[f"{name}.bias"] if f"{name}.bias" in self.t else y

    def qkv(self, n, layer, which):
        """Projection `which` of n, [T, heads, head_dim], with its head norm."""
        m, name = self.m, f"blk.{layer}.attn_"
        heads = m.n_head if which == "q" else m.n_head_kv
        if name + "qkv.weight" in self.t:
            start = {"q": 0, "k": m.n_head, "v": m.n_head + m.n_head_kv}[which] * m.head_dim
            x = n @ self.t[name + "qkv.weight"][start:start + heads * m.head_dim].T
        else:
            x = self.linear(n, name + which)
        x = x.reshape(len(n), heads, m.head_dim)
        return self.norm(x, f"{name}{which}_norm.weight") if f"{name}{which}_norm.weight" in self.t else x

    def remember(self, layer, name, rows):
        old = self.caches[layer].get(name)
        self.caches[layer][name] = rows if old is None else np.concatenate([old, rows])
        return self.caches[layer][name]

    def exact(self, q, keys, layer):
        """Scores of a layer's own queries over keys, [H, T, n]: without and with the soft cap."""
        m = self.m
        freq, magnitude = m.rope(layer, self.n_ctx)
        turned = lambda x, first: turn(x, (first + np.arange(len(x)))[:, None, None] * freq, m.arch in NEOX)
        q, keys = turned(q, self.n_past), np.repeat(turned(keys, 0), m.n_head // m.n_head_kv, axis=1)
        factor = self.dtype(magnitude**2 / np.sqrt(m.head_dim))
        if magnitude != 1.0 and m.n_rot != m.head_dim:
            raise NotImplementedError("a magnitude on part of a head")
        scores = np.einsum("ihd,jhd->hij", q, keys, optimize=True) * factor
        return scores, m.softcap * np.tanh(scores / m.softcap) if m.softcap else scores

    def align(self, source, seen, n, layer):
        """Scores of a `lisa` layer from its source's log weights."""
        plan, m, part = self.plan, self.m, lambda name: self.t.get(f"blk.{layer}.lisa_{name}")
        given = np.where(seen, source if plan.domain == "log" else np.exp(source), 0.0).astype(self.dtype)
        scores = np.einsum("hij,hg->gij", given, part("align_skip.weight"), optimize=True)
        if part("align_up.weight") is not None:
            hidden = np.einsum("hij,hm->mij", given, part("align_up.weight"), optimize=True)
            hidden = ACTIVATIONS[plan.activation](hidden + part("align_up.bias")[:, None, None])
            scores = scores + np.einsum("mij,mg->gij", hidden, part("align_down.weight"), optimize=True)
        rank = plan.rank(layer, m.n_head)
        if rank:
            freq = plan.part(layer, "freq.weight").astype(np.float64)
            group = m.n_head // m.n_head_kv
            turned = lambda x, first, freq: turn(
                x, (first + np.arange(len(x)))[:, None, None] * freq[None], plan.neox_pairs)
            q = (n @ part("q.weight").T).reshape(len(n), m.n_head, rank)
            k = self.remember(layer, "low", (n @ part("k.weight").T).reshape(len(n), m.n_head_kv, rank))
            q, k = turned(q, self.n_past, np.repeat(freq, group, axis=0)), turned(k, 0, freq)
            scores = scores + np.einsum(
                "igr,jgr->gij", q, np.repeat(k, group, axis=1), optimize=True) * self.dtype(plan.scale)
        return scores

    def own_keys(self, layer):
        """The layer whose keys and values a chain of `kv` layers ends at."""
        while self.plan.layers[layer][0] == "kv":
            layer = self.plan.layers[layer][1]
        assert self.plan.layers[layer][0] == "full"
        return layer

    def feed(self, ids):
        """Logits after each of `ids`, [T, n_vocab]."""
        m, t, n_tokens = self.m, self.t, len(ids)
        x = t["token_embd.weight"][ids]
        if m.arch == "gemma3":
            x = x * self.dtype(np.sqrt(m.n_embd))
        i, j = (self.n_past + np.arange(n_tokens))[:, None], np.arange(self.n_past + n_tokens)[None]
        logs, uncapped = [None] * m.n_layer, [None] * m.n_layer
        for layer, (kind, source) in enumerate(self.plan.layers):
            name = f"blk.{layer}."
            window = m.window(layer)
            assert source < 0 or m.window(source) == window
            seen = (j <= i) & (j > i - window) if window else j <= i
            n = self.norm(x, name + "attn_norm.weight")
            if kind in ("full", "kv"):
                q = self.qkv(n, layer, "q")
                if kind == "full":
                    self.remember(layer, "k", self.qkv(n, layer, "k"))
                home = self.own_keys(layer)
                scores, capped = self.exact(q, self.caches[home]["k"], layer)
                logs[layer], uncapped[layer] = log_softmax(capped, seen), log_softmax(scores, seen)
            elif kind == "shared":
                logs[layer] = logs[source]
                uncapped[layer] = uncapped[source]
            else:
                taken = uncapped[source] if self.plan.uncapped else logs[source]
                logs[layer] = uncapped[layer] = log_softmax(self.align(taken, seen, n, layer), seen)
            if kind == "kv":
                values = self.caches[home]["v"]
            else:
                values = self.remember(layer, "v", self.qkv(n, layer, "v"))
            values = np.repeat(values, m.n_head // m.n_head_kv, axis=1)
            heads = np.einsum("hij,jhd->ihd", np.exp(logs[layer]), values, optimize=True)
            delta = self.linear(heads.reshape(n_tokens, -1), name + "attn_output")
            comp = t.get(name + "lisa_comp.weight")
            if comp is not None and not self.plan.comp_after_norm:
                delta = delta + n @ comp.T
            if name + "post_attention_norm.weight" in t:
                delta = self.norm(delta, name + "post_attention_norm.weight")
            if comp is not None and self.plan.comp_after_norm:
                delta = delta + n @ comp.T
            x = x + delta
            x = x + self.feed_forward(self.norm(x, name + "ffn_norm.weight"), name)
        self.n_past += n_tokens
        head = t.get("output.weight", t["token_embd.weight"])
        logits = self.norm(x, "output_norm.weight") @ head.T
        return m.final_softcap * np.tanh(logits / m.final_softcap) if m.final_softcap else logits

    def feed_forward(self, n, name):
        if name + "ffn_gate.weight" in self.t:
            gate, up = self.linear(n, name + "ffn_gate"), self.linear(n, name + "ffn_up")
        else:
            gate, up = np.split(self.linear(n, name + "ffn_up"), 2, axis=-1)
        act = ACTIVATIONS["gelu" if self.m.arch == "gemma3" else "silu"]
        delta = self.linear(act(gate) * up, name + "ffn_down")
        return self.norm(delta, name + "post_ffw_norm.weight") if name + "post_ffw_norm.weight" in self.t else delta


def run(model, plan, ids, n_ctx=512, shift=None, dtype=np.float64):
    """Logits after each of `ids`; with (at, n_keep, n_discard), the context is shifted after `at` tokens."""
    p = Pass(model, plan, n_ctx, dtype)
    if not shift:
        return p.feed(ids)
    at, n_keep, n_discard = shift
    first = p.feed(ids[:at])
    p.shift(n_keep, n_discard)
    return np.concatenate([first, p.feed(ids[at:])])


def layer_of(name):
    return int(re.match(r"blk\.(\d+)\.", name)[1])
