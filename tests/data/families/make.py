#!/usr/bin/env python3
"""Writes the tiny random-weight models of this folder, and packs reference logits beside them.

    make.py models OUT              OUT/NAME.gguf, OUT/NAME.runs (one line a run: n_ctx, the token ids, and for a
                                    context shift `| AT N_KEEP N_DISCARD`)
    make.py pack OUT LOGITS DEST    DEST/NAME.gguf.gz, DEST/NAME.json.gz
                                    from LOGITS/NAME.RUN.f32, row-major [n_tokens][n_vocab]

Needs `numpy` and `gguf` from PyPI. Every value is drawn from a generator seeded by the model's name, and matrices
are rounded to a power-of-two grid: exact in F32, and they compress well.
"""
import gzip
import json
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np

N_EMBD = 64
# The logit of tokens that are never predicted.
LEAST = np.finfo(np.float32).min
# Tokens of which there are many.
LARGE = 1000


class Tiny:
    """One model: hyperparameters with the defaults of the table below, changed by keyword."""

    def __init__(self, name, arch, *, n_layer=3, n_head=4, n_head_kv=2, head_dim=None, value_dim=None, n_ff=112, n_vocab=300,
                 n_ctx=512, freq_base=10000.0, eps=1e-5, tied=False, bias=(), qk_norm=False, sandwich=False, post_norm=False,
                 post_names=("post_attention_norm.weight", "post_ffw_norm.weight"), experts=None, gate_up=False, beside=0, shared=0, shared_gate=False, expert_bias=False, sinks=False, fused=False, n_rot=None, emb=None, gate=1.6, ffn_norm="ffn_norm", layer_norm=None, ungated=False,
                 ff_key=None, attn_gate=False, positions=False, silent=None, chunk=0, embed_norm=False, sub_norm=False, scales=False, nvfp4=False, keys=None, tensors=None, runs=None):
        self.name, self.arch = name, arch
        self.ff_key = ff_key  # what the file says in the place of n_ff
        self.attn_gate = attn_gate  # gates on what attention gives, one for each value or, "heads", for each head
        self.silent = silent  # tokens that are never predicted
        self.chunk = chunk  # hidden units of the network that the experts of a group share
        self.positions, self.embed_norm = positions, embed_norm  # learned positions; a norm on embeddings
        self.sub_norm, self.scales = sub_norm, scales  # norms inside the halves of a layer; factors on the results of its matrices
        self.nvfp4 = nvfp4  # values that NVFP4 has, and factors beside all matrices of layers
        self.n_layer, self.n_head, self.n_head_kv = n_layer, n_head, n_head_kv
        self.head_dim = head_dim or N_EMBD // n_head
        self.value_dim = value_dim or self.head_dim  # of a head's values, where keys are longer or shorter
        self.explicit_head_dim = head_dim is not None
        self.n_ff, self.n_vocab, self.n_ctx = n_ff, n_vocab, n_ctx
        self.freq_base, self.eps, self.tied = freq_base, eps, tied
        self.bias, self.qk_norm, self.sandwich, self.fused = bias, qk_norm, sandwich, fused
        self.n_rot = n_rot
        self.emb = emb
        self.post_norm, self.post_names = post_norm, post_names
        self.ffn_norm, self.gate = ffn_norm, gate
        # "bias" or "plain": LayerNorm with biases or without, "bare": without weights too; "rms": RMSNorm with biases; the norm before the feed-forward half may be missing.
        self.layer_norm, self.ungated = layer_norm, ungated
        self.experts = experts  # how many, and how many of them are chosen, unless that is among `keys`
        self.beside = beside  # hidden units of a network beside them that is called as others are
        self.gate_up = gate_up  # gates and what they gate are one tensor
        self.shared, self.shared_gate = shared, shared_gate  # hidden units of the network beside them
        self.gate_up_shared = arch == "granite_swa"  # the same of that network
        self.expert_bias = expert_bias
        self.sinks = sinks
        self.keys, self.tensors = keys or {}, tensors or {}
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        # (n_ctx, number of tokens, every how many positions the logits are kept); with three numbers more, a context
        # shift: after how many tokens, how many are kept before those discarded, and how many are discarded
        self.runs = runs or [(n_ctx, 48, 1)]

    def matrix(self, n_out, n_in, gain):
        std = gain / np.sqrt(n_in)
        step = 2.0 ** np.floor(np.log2(std / 8))
        values = (np.round(self.rng.normal(0, std, (n_out, n_in)) / step) * step).astype(np.float32)
        return to_nvfp4(values) if self.nvfp4 else values

    def table(self, gain):
        """A row for each token. Those of large vocabularies are the first ones, rolled, which compress well."""
        n = self.n_vocab if self.n_vocab < LARGE else 100
        first = self.matrix(n, N_EMBD, gain)
        return np.stack([np.roll(first[i % n], i // n) for i in range(self.n_vocab)])

    def vector(self, n, mean, std):
        return self.rng.normal(mean, std, n).astype(np.float32)

    def write(self, path):
        w = gguf.GGUFWriter(path, self.arch)
        a = self.arch
        w.add_name("tiny random weights")
        w.add_uint32(f"{a}.context_length", self.n_ctx)
        w.add_uint32(f"{a}.embedding_length", N_EMBD)
        w.add_uint32(f"{a}.block_count", self.n_layer)
        if self.n_ff is not None:
            w.add_uint32(f"{a}.feed_forward_length", self.ff_key or self.n_ff)
        if self.n_head is not None:
            w.add_uint32(f"{a}.attention.head_count", self.n_head)
        if self.n_head_kv is not None:
            w.add_uint32(f"{a}.attention.head_count_kv", self.n_head_kv)
        w.add_float32(f"{a}.attention.layer_norm_{'epsilon' if self.layer_norm in ('bias', 'plain', 'bare') else 'rms_epsilon'}", self.eps)
        if self.freq_base is not None:
            w.add_float32(f"{a}.rope.freq_base", self.freq_base)
        if self.explicit_head_dim:
            w.add_uint32(f"{a}.attention.key_length", self.head_dim)
            w.add_uint32(f"{a}.attention.value_length", self.value_dim)
        if self.n_rot is not None:
            w.add_uint32(f"{a}.rope.dimension_count", self.n_rot)
        if self.experts:
            w.add_uint32(f"{a}.expert_count", self.experts[0])
            if self.experts[1] is not None:
                w.add_uint32(f"{a}.expert_used_count", self.experts[1])
        for key, value in self.keys.items():
            key = key if key.startswith("xielu.") else f"{a}.{key}"
            if isinstance(value, bool):
                w.add_bool(key, value)
            elif isinstance(value, int):
                w.add_uint32(key, value)
            elif isinstance(value, float):
                w.add_float32(key, value)
            elif isinstance(value, str):
                w.add_string(key, value)
            else:
                w.add_array(key, value)
        self.add_tokenizer(w)
        self.add_tensors(w)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()

    def add_tokenizer(self, w):
        """SentencePiece: <unk> <s> </s>, the 256 byte pieces, then letters with and without a leading space."""
        tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        types = [2, 3, 3] + [6] * 256
        pieces = ["\u2581"] + [f"\u2581{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + list("abcdefghijklmnopqrstuvwxyz")
        pieces = (pieces + [f"<{i}>" for i in range(self.n_vocab)])[: self.n_vocab - len(tokens)]
        tokens += pieces
        types += [1] * len(pieces)
        assert len(tokens) == self.n_vocab
        w.add_tokenizer_model("llama")
        w.add_token_list(tokens)
        w.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(pieces))])
        w.add_token_types(types)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_add_bos_token(True)
        w.add_add_space_prefix(True)

    def add_factors(self, w, i, name, tensor):
        """Beside a matrix or a stack of them, where such files have them."""
        if self.nvfp4 and tensor.ndim > 1 and "gate_inp" not in name and "conv1d" not in name:
            n = len(tensor) if tensor.ndim == 3 else 1
            for kind in ("scale", "input_scale"):
                w.add_tensor(f"blk.{i}.{name.removesuffix('weight')}{kind}", self.vector(n, 1.0, 0.3))

    def add_tensors(self, w):
        # Gains: scores of standard deviation about 2, branches that grow the residual stream by about as much as it
        # holds, logits of standard deviation about 3. QK-normed models take the sharpness from the norm weights.
        emb = self.emb or (0.35 if self.tied or self.sandwich else 1.0)
        w.add_tensor("token_embd.weight", self.table(emb * np.sqrt(N_EMBD)))
        for name, tensor in self.tensors.items():
            w.add_tensor(name, np.asarray(tensor, dtype=np.float32))
        if self.positions:
            w.add_tensor("position_embd.weight", self.matrix(self.n_ctx, N_EMBD, emb * np.sqrt(N_EMBD)))
        if self.embed_norm:
            w.add_tensor("token_embd_norm.weight", self.vector(N_EMBD, 1.0, 0.2))
            w.add_tensor("token_embd_norm.bias", self.vector(N_EMBD, 0.0, 0.3))
        for i in range(self.n_layer):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)
                self.add_factors(w, i, name, tensor)

            def norm(name):
                add(f"{name}.weight", self.vector(N_EMBD, 1.0, 0.2))
                if self.layer_norm in ("bias", "rms"):
                    add(f"{name}.bias", self.vector(N_EMBD, 0.0, 0.3))

            if not self.post_norm and self.layer_norm != "bare":
                norm("attn_norm")
            self.attention(add)
            if self.sandwich or self.post_norm:
                add(self.post_names[0], self.vector(N_EMBD, 0.8, 0.2))
            if self.ffn_norm and not self.post_norm and self.layer_norm != "bare":
                norm(self.ffn_norm)
            n_dense, step = (self.keys.get(k, d) for k, d in (("leading_dense_block_count", 0), ("interleave_moe_layer_step", 1)))
            if self.experts and i >= n_dense and (i + 1) % step == 0:
                # Scores of standard deviation 2: some experts matter much more than others.
                n, n_ff = self.experts[0], self.keys.get("expert_feed_forward_length", self.n_ff) or self.n_ff // self.experts[1]
                add("ffn_gate_inp.weight", self.matrix(n, N_EMBD, 2.0))
                gates = (("gate_up", 2 * n_ff, N_EMBD),) if self.gate_up else (("gate", n_ff, N_EMBD), ("up", n_ff, N_EMBD))
                for name, n_out, n_in in (*gates, ("down", N_EMBD, n_ff)):
                    gain = 1.6 if name == "down" else self.gate
                    add(f"ffn_{name}_exps.weight", np.stack([self.matrix(n_out, n_in, gain) for _ in range(n)]))
                if "experts" in self.bias:
                    add("ffn_gate_inp.bias", self.vector(n, 0.0, 1.0))
                    for name, width in (("gate", n_ff), ("up", n_ff), ("down", N_EMBD)):
                        add(f"ffn_{name}_exps.bias", self.vector(n * width, 0.0, 0.3).reshape(n, width))
                if self.expert_bias:
                    add("exp_probs_b" if self.arch == "hy_v3" else "exp_probs_b.bias", self.vector(n, 0.0, 0.3))
                if self.shared:
                    gates = (("gate", self.shared), ("up", self.shared)) if not self.gate_up_shared else (("up", 2 * self.shared),)
                    for name, n_out, n_in in (*((name, rows, N_EMBD) for name, rows in gates), ("down", N_EMBD, self.shared)):
                        add(f"ffn_{name}_shexp.weight", self.matrix(n_out, n_in, 1.4))
                if self.chunk:
                    n_groups = n // self.keys["experts_per_group"]
                    for name, n_out, n_in in (("gate", self.chunk, N_EMBD), ("up", self.chunk, N_EMBD), ("down", N_EMBD, self.chunk)):
                        add(f"ffn_{name}_chexps.weight", np.stack([self.matrix(n_out, n_in, 0.8) for _ in range(n_groups)]))
                if self.arch == "arctic":
                    norm("ffn_norm_exps")
                if self.beside:
                    for name, n_out, n_in in (("gate", self.beside, N_EMBD), ("up", self.beside, N_EMBD), ("down", N_EMBD, self.beside)):
                        add(f"ffn_{name}.weight", self.matrix(n_out, n_in, 1.3))
                if self.shared_gate:
                    add("ffn_gate_inp_shexp.weight", self.matrix(1, N_EMBD, 2.0)[0])
                if self.sandwich or self.post_norm:
                    add(self.post_names[1], self.vector(N_EMBD, 0.8, 0.2))
                continue
            if self.sub_norm:
                add("attn_sub_norm.weight", self.vector(self.n_head * self.head_dim, 1.0, 0.2))
                add("ffn_sub_norm.weight", self.vector(self.n_ff, 1.0, 0.2))
            if self.scales:
                for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                    add(f"{name}.scale", self.vector(1, 1.0, 0.4))
            gate, up = self.matrix(self.n_ff, N_EMBD, 1.3), self.matrix(self.n_ff, N_EMBD, 1.3)
            if self.ungated:
                add("ffn_up.weight", up)
            elif self.fused and self.fused != "qkv":
                add("ffn_up.weight", np.concatenate([gate, up]))
            else:
                add("ffn_gate.weight", gate)
                add("ffn_up.weight", up)
            add("ffn_down.weight", self.matrix(N_EMBD, self.n_ff, 1.3))
            if "ffn" in self.bias:
                if not self.ungated:
                    add("ffn_gate.bias", self.vector(self.n_ff, 0.0, 0.3))
                add("ffn_up.bias", self.vector(self.n_ff, 0.0, 0.3))
                add("ffn_down.bias", self.vector(N_EMBD, 0.0, 0.3))
            if self.sandwich or self.post_norm:
                add(self.post_names[1], self.vector(N_EMBD, 0.8, 0.2))
        if self.layer_norm != "bare":
            w.add_tensor("output_norm.weight", self.vector(N_EMBD, 1.0, 0.2))
        if self.layer_norm in ("bias", "rms"):
            w.add_tensor("output_norm.bias", self.vector(N_EMBD, 0.0, 0.3))
        if not self.tied:
            w.add_tensor("output.weight", self.table(3.0))
        if "output" in self.bias:
            w.add_tensor("output.bias", self.vector(self.n_vocab, 0.0, 1.0))

    def attention(self, add):
        d_q = self.n_head * self.head_dim
        d_kv = (self.n_head_kv or self.n_head) * self.head_dim
        d_v, d_out = (self.n_head_kv or self.n_head) * self.value_dim, self.n_head * self.value_dim
        q, k = self.matrix(d_q, N_EMBD, 1.4), self.matrix(d_kv, N_EMBD, 1.4)
        v = self.matrix(d_v, N_EMBD, 1.0)
        if self.fused and self.fused != "ffn":
            add("attn_qkv.weight", np.concatenate([q, k, v]))
            if "qkv" in self.bias:
                add("attn_qkv.bias", self.vector(d_q + 2 * d_kv, 0.0, 0.5))
        else:
            add("attn_q.weight", q)
            add("attn_k.weight", k)
            add("attn_v.weight", v)
        for what, n in (("q", d_q), ("k", d_kv), ("v", d_kv)):
            if what in self.bias:
                add(f"attn_{what}.bias", self.vector(n, 0.0, 0.5))
        if self.qk_norm:
            # On all heads together, on each with weights of its own, or on each with the same.
            n = (self.head_dim, self.head_dim) if self.qk_norm is True else (d_q, d_kv)
            for what, n in zip(("q", "k"), n):
                weights = self.vector(n, 1.4, 0.3)
                add(f"attn_{what}_norm.weight", weights.reshape(-1, self.head_dim) if self.qk_norm == "own" else weights)
                if "norms" in self.bias:
                    add(f"attn_{what}_norm.bias", self.vector(n, 0.0, 0.3).reshape(-1, self.head_dim))
        if self.attn_gate:
            add("attn_gate.weight", self.matrix(self.n_head if self.attn_gate == "heads" else d_out, N_EMBD, 1.4))
        add("attn_output.weight", self.matrix(N_EMBD, d_out, 1.5))
        if "o" in self.bias:
            add("attn_output.bias", self.vector(N_EMBD, 0.0, 0.3))
        if self.sinks:
            add("attn_sinks.weight", self.vector(self.n_head, 2.0, 1.5))

    def ids(self, n):
        return [1] + self.rng.integers(3, self.n_vocab, n - 1).tolist()


class Varying(Tiny):
    """Layers with query heads, key/value heads and hidden units of their own number, `(heads, kv, n_ff)`: without key/value heads a linear map is in
    the place of attention, without any heads nothing, and without hidden units there is no network."""

    def __init__(self, name, arch, layers, **rest):
        self.layers = layers
        names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        keys = {key: [layer[i] for layer in layers] for i, key in enumerate(names)}
        super().__init__(name, arch, n_layer=len(layers), n_head=None, n_head_kv=None, n_ff=None,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def add_tensors(self, w):
        d = N_EMBD
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, (self.emb or (0.35 if self.tied else 1.0)) * np.sqrt(d)))
        for name, tensor in self.tensors.items():
            w.add_tensor(name, np.asarray(tensor, dtype=np.float32))
        for i, (self.n_head, self.n_head_kv, n_ff) in enumerate(self.layers):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            if self.n_head:
                add("attn_norm.weight", self.vector(d, 1.0, 0.2))
                if self.n_head_kv:
                    self.attention(add)
                else:
                    add("attn_output.weight", self.matrix(d, d, 1.2))
            if n_ff:
                add("ffn_norm.weight", self.vector(d, 1.0, 0.2))
                for name, n_out, n_in in (("gate", n_ff, d), ("up", n_ff, d), ("down", d, n_ff)):
                    add(f"ffn_{name}.weight", self.matrix(n_out, n_in, 1.3))
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))
        if not self.tied:
            w.add_tensor("output.weight", self.matrix(self.n_vocab, d, 3.0))


class Alternating(Tiny):
    """Layers with query heads and key/value heads of their own number, and a window or not: `(heads, kv, local)`. `kv_only`: files give the number of
    query heads once. `sinks`: in layers with windows. Without `pattern` files leave unsaid which layers these are."""

    def __init__(self, name, arch, layers, *, sinks=False, kv_only=False, numbers=False, pattern=True, **rest):
        self.layers, self.of_local = layers, sinks
        heads, kv, local = ([layer[i] for layer in layers] for i in range(3))
        keys = {"attention.head_count_kv": kv}
        if pattern:
            keys["attention.sliding_window_pattern"] = [int(x) if numbers else bool(x) for x in local]
        if not kv_only:
            keys["attention.head_count"] = heads
        super().__init__(name, arch, n_layer=len(layers), n_head=heads[0] if kv_only else None, n_head_kv=None,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def add_tensors(self, w):
        self.turn = iter(self.layers)
        super().add_tensors(w)

    def attention(self, add):
        self.n_head, self.n_head_kv, local = next(self.turn)
        self.sinks = self.of_local and local
        super().attention(add)


class DeepSeek2(Tiny):
    """Multi-head latent attention: latents of `rank` values, heads of `plain` values, of `rot` that rotate, and of `value` that they make. With
    `q_rank` queries are made in two steps; with `old` what makes keys and values of latents is one matrix, as in older files."""

    def __init__(self, name, arch="deepseek2", *, rank=32, plain=16, rot=32, value=16, q_rank=0, old=False, n_head=4, **rest):
        self.sizes, self.q_rank, self.old = (rank, plain, rot, value), q_rank, old
        keys = {"attention.kv_lora_rank": rank, "attention.q_lora_rank": q_rank, "expert_shared_count": 0,
                "expert_feed_forward_length": 32}
        if old:
            keys |= {"attention.key_length": plain + rot, "attention.value_length": value}
        else:
            keys |= {"attention.key_length": rank + rot, "attention.value_length": rank,
                     "attention.key_length_mla": plain + rot, "attention.value_length_mla": value}
        super().__init__(name, arch, n_head=n_head, n_head_kv=n_head if old else 1, n_rot=rot,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def attention(self, add):
        d, n, (rank, plain, rot, value) = N_EMBD, self.n_head, self.sizes
        if self.q_rank:
            add("attn_q_a.weight", self.matrix(self.q_rank, d, 1.0))
            add("attn_q_a_norm.weight", self.vector(self.q_rank, 1.0, 0.2))
            add("attn_q_b.weight", self.matrix(n * (plain + rot), self.q_rank, 1.4))
        else:
            add("attn_q.weight", self.matrix(n * (plain + rot), d, 1.4))
        add("attn_kv_a_mqa.weight", self.matrix(rank + rot, d, 1.4))
        add("attn_kv_a_norm.weight", self.vector(rank, 1.0, 0.2))
        k, v = (np.stack([self.matrix(rows, rank, gain) for _ in range(n)]) for rows, gain in ((plain, 2.0), (value, 1.2)))
        if self.old:
            add("attn_kv_b.weight", np.concatenate([k, v], axis=1).reshape(-1, rank))
        else:
            add("attn_k_b.weight", np.ascontiguousarray(k.transpose(0, 2, 1)))
            add("attn_v_b.weight", v)
        add("attn_output.weight", self.matrix(d, n * value, 1.5))


class KimiLinear(DeepSeek2):
    """The delta rule with rates for each element of a key (k), and latent attention without positions (a). `fused`: queries, keys and values of the
    delta rule are one matrix."""

    def __init__(self, name, kinds, *, state=16, conv=4, fused=False, **rest):
        self.kinds, self.delta, self.joined = kinds, (state, conv), fused
        keys = {"attention.head_count_kv": [int(kind == "a") for kind in kinds], "kda.head_dim": state, "ssm.conv_kernel": conv}
        super().__init__(name, "kimi-linear", n_layer=len(kinds), keys={**keys, **rest.pop("keys", {})}, **rest)
        self.n_head_kv, self.next = None, 0

    def attention(self, add):
        kind, self.next = self.kinds[self.next], self.next + 1
        if kind == "a":
            return super().attention(add)
        d, n_head, (state, conv) = N_EMBD, self.n_head, self.delta
        n = n_head * state
        matrices = [self.matrix(n, d, 1.2) for _ in "qkv"]
        if self.joined:
            add("attn_qkv.weight", np.concatenate(matrices))
        for part, matrix in zip("qkv", matrices):
            if not self.joined:
                add(f"attn_{part}.weight", matrix)
            add(f"ssm_conv1d_{part}.weight", self.vector(n * conv, 0.0, 0.7).reshape(1, n, 1, conv))
        for part, gain in (("f", 1.0), ("g", 1.4)):
            add(f"ssm_{part}_a.weight", self.matrix(state, d, 1.0))
            add(f"ssm_{part}_b.weight", self.matrix(n, state, gain))
        add("ssm_beta.weight", self.matrix(n_head, d, 1.5))
        add("ssm_dt.bias", self.vector(n, -1.5, 0.9))
        add("ssm_a", -np.exp(self.vector(n_head, -0.5, 0.7)).reshape(1, 1, n_head, 1))
        add("ssm_norm.weight", self.vector(state, 1.0, 0.3))
        add("attn_output.weight", self.matrix(d, n, 2.4))


class Ling3(DeepSeek2):
    """Kimi Delta Attention with heads of `size` values where a layer has no key/value heads, elsewhere latent attention with gates on heads. `lowest`: the
    least logarithm of a decay."""

    def __init__(self, name, kv, *, size=16, conv=4, lowest=-1.5, **rest):
        self.kv, self.delta = kv, (size, conv)
        keys = {"attention.head_count_kv": kv, "kda.head_dim": size, "kda.safe_gate": True, "kda.gate_lower_bound": lowest,
                "ssm.conv_kernel": conv, "expert_gating_func": 2}
        super().__init__(name, "bailingmoe3", n_layer=len(kv), keys={**keys, **rest.pop("keys", {})}, **rest)
        self.n_head_kv = None

    def add_tensors(self, w):
        self.turn = iter(self.kv)
        super().add_tensors(w)

    def attention(self, add):
        d, n_head, (size, conv) = N_EMBD, self.n_head, self.delta
        if next(self.turn):
            super().attention(add)
            return add("attn_gate.weight", self.matrix(n_head, d, 1.4))
        n = n_head * size
        for name in ("q", "k", "v"):
            add(f"attn_{name}.weight", self.matrix(n, d, 1.2))
            add(f"ssm_conv1d_{name}.weight", self.vector(n * conv, 0.0, 0.7).reshape(1, n, 1, conv))
        add("ssm_f_a.weight", self.matrix(n, d, 1.5))
        add("ssm_dt.bias", self.vector(n, -1.0, 1.0))
        add("ssm_a", np.exp(self.vector(n_head, 0.0, 0.5)).reshape(-1, 1))
        add("ssm_beta.weight", self.matrix(n_head, d, 1.5))
        add("ssm_g_a.weight", self.matrix(n, d, 1.4))
        add("ssm_norm.weight", self.vector(size, 1.0, 0.3))
        add("attn_output.weight", self.matrix(d, n, 2.4))


class Lightning(Tiny):
    """Lightning attention in layers that `recurrent` names, or all but one of `interval`; elsewhere attention."""

    def __init__(self, name, recurrent=None, interval=None, **rest):
        keys = {"attention.recurrent_layers": recurrent} if recurrent else {"full_attention_interval": interval}
        super().__init__(name, "minimax-01", keys={**keys, **rest.pop("keys", {})}, **rest)
        self.recurrent = recurrent or [(i + 1) % interval != 0 for i in range(self.n_layer)]

    def add_tensors(self, w):
        self.turn = iter(self.recurrent)
        super().add_tensors(w)

    def attention(self, add):
        if not next(self.turn):
            return super().attention(add)
        d, n = N_EMBD, self.n_head * self.head_dim
        add("attn_qkv.weight", self.matrix(3 * n, d, 1.4))
        add("attn_norm_2.weight", self.vector(n, 1.0, 0.2))
        add("attn_gate.weight", self.matrix(n, d, 1.6))
        add("attn_output.weight", self.matrix(d, n, 2.0))


class Talkie(Tiny):
    """Norms without weights, after the rotation on heads too, whose queries have factors; factors on what the halves of a layer make, and on the
    embeddings that it adds once more."""

    def __init__(self, name, *, eps=1e-5, **rest):
        super().__init__(name, "talkie", layer_norm="bare", eps=eps, keys={"attention.layer_norm_rms_epsilon": eps, **rest.pop("keys", {})}, **rest)

    def attention(self, add):
        super().attention(add)
        add("attn_q_norm.weight", self.vector(self.n_head, 2.0, 0.6).reshape(-1, 1))
        add("attn_output.scale", self.vector(1, 1.0, 0.4))
        add("ffn_down.scale", self.vector(1, 1.0, 0.4))
        add("layer_output_scale.weight", self.vector(1, 0.5, 0.4))


class Gemma4(Tiny):
    """Layers with heads of two sizes; with `side`, inputs of their own, of so many values each; the last `n_shared` have no keys. With
    `experts`, mixtures beside the networks of all layers but the first."""

    def __init__(self, name, windows, *, side=0, n_shared=0, n_ff=(96, 96), n_head_kv=(1, 2), **rest):
        self.windows, self.side, self.n_shared = windows, side, n_shared
        n, kv = len(windows), [n_head_kv[w] for w in windows]
        self.kv, self.ffs = kv, [n_ff[i >= n - n_shared] for i in range(n)]
        keys = {
            "attention.head_count_kv": kv, "feed_forward_length": self.ffs, "attention.key_length": 32,
            "attention.value_length": 32, "attention.key_length_swa": 16, "attention.value_length_swa": 16,
            "rope.dimension_count": 32, "rope.dimension_count_swa": 16, "rope.freq_base_swa": 3000.0,
            "attention.sliding_window": 8, "attention.sliding_window_pattern": windows,
            "attention.shared_kv_layers": n_shared, "embedding_length_per_layer_input": side}
        super().__init__(name, "gemma4", n_layer=n, n_head_kv=None, n_ff=None, freq_base=100000.0,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def add_tensors(self, w):
        d, side = N_EMBD, self.side
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, 0.35 * np.sqrt(d)))
        # A part of the global layers' pairs does not turn.
        w.add_tensor("rope_freqs.weight", np.concatenate([np.ones(3), np.full(13, 1e30)]).astype(np.float32))
        if side:
            n = side * self.n_layer
            w.add_tensor("per_layer_token_embd.weight", self.matrix(self.n_vocab, n, 0.25 * np.sqrt(n)))
            w.add_tensor("per_layer_model_proj.weight", self.matrix(n, d, 8.0))
            w.add_tensor("per_layer_proj_norm.weight", self.vector(side, 1.0, 0.2))
        for i, local in enumerate(self.windows):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            head_dim, kv, n_ff = (16 if local else 32), self.kv[i], self.ffs[i]
            add("attn_norm.weight", self.vector(d, 1.0, 0.2))
            add("attn_q.weight", self.matrix(4 * head_dim, d, 1.4))
            add("attn_q_norm.weight", self.vector(head_dim, 0.6, 0.1))
            if i < self.n_layer - self.n_shared:
                add("attn_k.weight", self.matrix(kv * head_dim, d, 1.4))
                add("attn_k_norm.weight", self.vector(head_dim, 0.6, 0.1))
                if side or local:
                    add("attn_v.weight", self.matrix(kv * head_dim, d, 1.0))
            add("attn_output.weight", self.matrix(d, 4 * head_dim, 1.5))
            for name in ("post_attention_norm", "post_ffw_norm"):
                add(f"{name}.weight", self.vector(d, 0.8, 0.2))
            add("ffn_norm.weight", self.vector(d, 1.0, 0.2))
            for name, n_out, n_in in (("gate", n_ff, d), ("up", n_ff, d), ("down", d, n_ff)):
                add(f"ffn_{name}.weight", self.matrix(n_out, n_in, 1.3))
            if self.experts and i > 0:
                n, n_ff = self.experts[0], self.keys["expert_feed_forward_length"]
                add("ffn_gate_inp.weight", self.matrix(n, d, 2.0))
                # The router's input is divided by the square root of its width.
                add("ffn_gate_inp.scale", self.vector(d, 8.0, 1.5))
                for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
                    add(f"{name}.weight", self.vector(d, 1.0, 0.3))
                add("ffn_gate_up_exps.weight", np.stack([self.matrix(2 * n_ff, d, 1.5) for _ in range(n)]))
                add("ffn_down_exps.weight", np.stack([self.matrix(d, n_ff, 1.5) for _ in range(n)]))
                add("ffn_down_exps.scale", self.vector(n, 1.0, 0.4))
            if side:
                add("inp_gate.weight", self.matrix(side, d, 1.3))
                add("proj.weight", self.matrix(d, side, 1.3))
                add("post_norm.weight", self.vector(d, 0.8, 0.2))
            add("layer_output_scale.weight", self.vector(1, 0.8, 0.2))
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))


class Gemma3n(Tiny):
    """A residual stream of four rows, a product of low rank beside attention, and inputs for every layer. llama.cpp takes the number of layers
    with keys, of those with cut gates, and two widths for granted, so that the models are deep, and some of their matrices large."""

    ROWS, SIDE, RANK, N_OWNERS, N_CUT = 4, 256, 64, 20, 10

    def __init__(self, name, windows, **rest):
        n = len(windows)
        keys = {
            "feed_forward_length": [rest["n_ff"]] * n, "attention.sliding_window": 8, "attention.sliding_window_pattern": windows,
            "attention.shared_kv_layers": n - self.N_OWNERS, "embedding_length_per_layer_input": self.SIDE,
            "altup.num_inputs": self.ROWS, "altup.active_idx": 0,
            "activation_sparsity_scale": [1.6448533535003662] * self.N_CUT + [-np.inf] * (n - self.N_CUT)}
        rest["n_ff"], self.width = None, rest["n_ff"]
        super().__init__(name, "gemma3n", n_layer=n, freq_base=100000.0, keys={**keys, **rest.pop("keys", {})}, **rest)

    def rolled(self, n_out, n_in, gain):
        """Every row but one in `n_in` is the one before, rolled: large matrices that compress well."""
        first = self.matrix(-(-n_out // n_in), n_in, gain)
        return np.stack([np.roll(first[i // n_in], i % n_in) for i in range(n_out)])

    def add_tensors(self, w):
        d, n, side, rows, n_ff = N_EMBD, self.n_layer, self.SIDE, self.ROWS, self.width
        d_q, d_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, 0.35 * np.sqrt(d)))
        of_tokens = self.matrix(self.n_vocab, side, 1.0)
        w.add_tensor("per_layer_token_embd.weight", np.concatenate([np.roll(of_tokens, 7 * i, axis=1) for i in range(n)], axis=1))
        w.add_tensor("per_layer_model_proj.weight", self.rolled(n * side, d, 8.0))
        w.add_tensor("per_layer_proj_norm.weight", self.vector(side, 1.0, 0.2))
        for name in ("altup_proj", "altup_unembd_proj"):
            w.add_tensor(f"{name}.weight", np.stack([self.matrix(d, d, 1.0) for _ in range(rows - 1)]))
        for i in range(n):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}.weight", tensor)

            add("attn_norm", self.vector(d, 1.0, 0.2))
            # The last layers' keys and values are in files too.
            for name, n_out, gain in (("q", d_q, 1.4), ("k", d_kv, 1.4), ("v", d_kv, 1.0)):
                add(f"attn_{name}", self.matrix(n_out, d, gain))
            for name in ("q", "k"):
                add(f"attn_{name}_norm", self.vector(self.head_dim, 0.6, 0.1))
            add("attn_output", self.matrix(d, d_q, 1.5))
            # So many layers: each adds less than elsewhere, the few hidden units that are left least.
            add("post_attention_norm", self.vector(d, 0.3, 0.1))
            add("post_ffw_norm", self.vector(d, 0.2, 0.05))
            add("ffn_norm", self.vector(d, 1.0, 0.2))
            for name, n_out, n_in in (("gate", n_ff, d), ("up", n_ff, d), ("down", d, n_ff)):
                add(f"ffn_{name}", self.rolled(n_out, n_in, 1.3))
            add("inp_gate", self.rolled(side, d, 1.3))
            add("proj", self.rolled(d, side, 1.3))
            add("post_norm", self.vector(d, 0.3, 0.1))
            add("laurel_l", self.rolled(self.RANK, d, 1.3))
            add("laurel_r", self.rolled(d, self.RANK, 1.3))
            add("laurel_post_norm", self.vector(d, 0.3, 0.1))
            # The router's input is divided by its width.
            add("altup_router_norm", self.vector(d, 16.0, 4.0))
            add("altup_router", self.matrix(rows, d, 2.5))
            add("altup_predict_coef", self.matrix(rows * rows, rows, 0.2))
            add("altup_correct_coef", self.matrix(rows, rows, 0.6))
            add("altup_correct_scale", self.vector(d, 1.0, 0.3))
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))


class Lfm2(Tiny):
    """Convolutions where a layer has no key/value heads. With `experts`, mixtures from the second layer on."""

    def __init__(self, name, arch, kv, *, l_cache=3, **rest):
        self.kv = kv
        keys = {"attention.head_count_kv": kv, "shortconv.l_cache": l_cache}
        super().__init__(name, arch, n_layer=len(kv), n_head_kv=None, tied=True, eps=1e-2,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def add_tensors(self, w):
        d = N_EMBD
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, 0.35 * np.sqrt(d)))
        for i, kv in enumerate(self.kv):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            add("attn_norm.weight", self.vector(d, 1.0, 0.2))
            add("ffn_norm.weight", self.vector(d, 1.0, 0.2))
            if kv == 0:
                add("shortconv.in_proj.weight", self.matrix(3 * d, d, 1.3))
                add("shortconv.conv.weight", self.vector(d * self.keys["shortconv.l_cache"], 0.0, 0.7).reshape(d, -1))
                add("shortconv.out_proj.weight", self.matrix(d, d, 1.3))
            else:
                add("attn_q.weight", self.matrix(d, d, 1.4))
                for name in ("k", "v"):
                    add(f"attn_{name}.weight", self.matrix(kv * self.head_dim, d, 1.2))
                for name in ("q", "k"):
                    add(f"attn_{name}_norm.weight", self.vector(self.head_dim, 1.4, 0.3))
                add("attn_output.weight", self.matrix(d, d, 1.5))
            n_ff = self.n_ff
            suffix = "" if not self.experts or i == 0 else "_exps"
            if suffix:
                n = self.experts[0]
                add("ffn_gate_inp.weight", self.matrix(n, d, 2.0))
                add("exp_probs_b.bias", self.vector(n, 0.0, 0.3))
                n_ff = self.keys["expert_feed_forward_length"]
            for name, n_out, n_in in (("gate", n_ff, d), ("up", n_ff, d), ("down", d, n_ff)):
                one = lambda: self.matrix(n_out, n_in, 1.5)
                add(f"ffn_{name}{suffix}.weight", np.stack([one() for _ in range(n)]) if suffix else one())
        w.add_tensor("token_embd_norm.weight", self.vector(d, 1.0, 0.2))


class DeltaNet(Tiny):
    """The gated delta rule in all but every `interval`-th layer, or as `recurrent` says; gates on what attention gives. `interleaved`: projections stored key
    head by key head, of the inputs too if `"all"`. `guessing`: with a layer that guesses further tokens, through which no token passes."""

    def __init__(self, name, arch, *, n_layer=4, heads=4, key_heads=2, state=16, conv=4, interval=None, recurrent=None,
                 interleaved=None, guessing=False, **rest):
        self.delta = (heads, key_heads, state, conv)
        self.recurrent = recurrent or [(i + 1) % (interval or 4) != 0 for i in range(n_layer)]
        self.interleaved, self.guessing = interleaved, guessing
        keys = {"ssm.conv_kernel": conv, "ssm.inner_size": heads * state, "ssm.state_size": state,
                "ssm.time_step_rank": heads, "ssm.group_count": key_heads}
        if interval:
            keys["full_attention_interval"] = interval
        if recurrent:
            keys["attention.recurrent_layers"] = recurrent + [False] * guessing
        if guessing:
            keys["nextn_predict_layers"] = 1
        super().__init__(name, arch, n_layer=len(self.recurrent) + guessing, qk_norm=True, head_dim=32, n_rot=8,
                         keys={**keys, **rest.pop("keys", {})}, **rest)

    def add_tensors(self, w):
        d, d_head = N_EMBD, self.head_dim
        heads, key_heads, state, conv = self.delta
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, (0.35 if self.tied else 1.0) * np.sqrt(d)))
        for i in range(self.n_layer):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)
                self.add_factors(w, i, name, tensor)

            add("attn_norm.weight", self.vector(d, 1.0, 0.2))
            add("post_attention_norm.weight", self.vector(d, 1.0, 0.2))
            if i < len(self.recurrent) and self.recurrent[i]:
                n_keys, n_values = key_heads * state, heads * state
                q, k, v, z = (self.matrix(n, d, 1.2) for n in (n_keys, n_keys, n_values, n_values))
                if self.interleaved == "all":
                    parts = [x.reshape(key_heads, -1, d) for x in (q, k, v, z)]
                    add("ssm_in.weight", np.concatenate(parts, axis=1).reshape(-1, d))
                else:
                    add("attn_qkv.weight", np.concatenate([q, k, v]))
                    add("attn_gate.weight", z)
                alpha, beta = self.matrix(heads, d, 1.0), self.matrix(heads, d, 1.5)
                if self.interleaved:
                    parts = [x.reshape(key_heads, -1, d) for x in (beta, alpha)]
                    add("ssm_ba.weight", np.concatenate(parts, axis=1).reshape(-1, d))
                else:
                    add("ssm_alpha.weight", alpha)
                    add("ssm_beta.weight", beta)
                add("ssm_conv1d.weight", self.vector((2 * n_keys + n_values) * conv, 0.0, 0.7).reshape(-1, conv))
                add("ssm_dt.bias", self.vector(heads, -1.5, 0.7))
                add("ssm_a", -np.exp(self.vector(heads, -1.0, 0.7)))
                add("ssm_norm.weight", self.vector(state, 1.0, 0.3))
                add("ssm_out.weight", self.matrix(d, n_values, 1.5))
            else:
                add("attn_q.weight", self.matrix(2 * self.n_head * d_head, d, 1.4))
                for name in ("k", "v"):
                    add(f"attn_{name}.weight", self.matrix(self.n_head_kv * d_head, d, 1.2))
                for name in ("q", "k"):
                    add(f"attn_{name}_norm.weight", self.vector(d_head, 1.4, 0.3))
                add("attn_output.weight", self.matrix(d, self.n_head * d_head, 2.4))
            if self.experts:
                n, n_ff = self.experts[0], self.keys["expert_feed_forward_length"]
                add("ffn_gate_inp.weight", self.matrix(n, d, 2.0))
                for name, n_out, n_in in (("gate", n_ff, d), ("up", n_ff, d), ("down", d, n_ff)):
                    add(f"ffn_{name}_exps.weight", np.stack([self.matrix(n_out, n_in, 1.5) for _ in range(n)]))
                for name, n_out, n_in in (("gate", self.shared, d), ("up", self.shared, d), ("down", d, self.shared)):
                    add(f"ffn_{name}_shexp.weight", self.matrix(n_out, n_in, 1.4))
                add("ffn_gate_inp_shexp.weight", self.matrix(1, d, 2.0)[0])
            else:
                for name, n_out, n_in in (("gate", self.n_ff, d), ("up", self.n_ff, d), ("down", d, self.n_ff)):
                    add(f"ffn_{name}.weight", self.matrix(n_out, n_in, 1.3))
        if self.guessing:
            i = self.n_layer - 1
            w.add_tensor(f"blk.{i}.nextn.eh_proj.weight", self.matrix(d, 2 * d, 1.0))
            for name in ("enorm", "hnorm", "shared_head_norm"):
                w.add_tensor(f"blk.{i}.nextn.{name}.weight", self.vector(d, 1.0, 0.2))
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))
        if not self.tied:
            w.add_tensor("output.weight", self.matrix(self.n_vocab, d, 3.0))


class Scan(Tiny):
    """Layers with a selective scan (m), attention (a), both side by side (b), or a feed-forward network alone (f). `networks`: those of the other kinds have
    one too, those in `dense` without experts. `normed`: gated results are normalised, group by group. `latent`: values that experts are given in the
    place of all, where they are given such."""

    def __init__(self, name, arch, kinds, *, heads=4, groups=2, state=16, inner=128, conv=4, normed=True, networks=True,
                 dense=(), n_ff=None, varies=True, latent=None, **rest):
        self.kinds, self.sizes, self.normed, self.networks = kinds, (heads, groups, state, inner, conv), normed, networks
        self.dense, self.latent = dense, latent
        keys = {"ssm.conv_kernel": conv, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": heads,
                "ssm.group_count": groups}
        self.kv = rest.pop("n_head_kv", 2)
        if varies:
            keys["attention.head_count_kv"] = [self.kv if kind == "a" else 0 for kind in kinds]
        if "f" in kinds:
            self.hidden, keys["feed_forward_length"] = n_ff, [n_ff if kind == "f" else 0 for kind in kinds]
        if kinds.strip("m"):
            attention = dict(n_head_kv=None if varies else self.kv)
        else:
            # What converters write of models without attention and networks.
            attention = dict(n_head_kv=None, n_head=0, head_dim=1, freq_base=None)
            n_ff = 0
        super().__init__(name, arch, n_layer=len(kinds), n_ff=None if "f" in kinds else n_ff,
                         keys={**keys, **rest.pop("keys", {})}, **attention, **rest)
        self.explicit_head_dim &= self.n_head > 0

    def add_tensors(self, w):
        d = N_EMBD
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, (self.emb or (0.35 if self.tied else 1.0)) * np.sqrt(d)))
        for i, kind in enumerate(self.kinds):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            add("attn_norm.weight", self.vector(d, 1.0, 0.2))
            if kind in "mb":
                self.scan(add)
            if kind in "ab":
                n_kv = self.kv * self.head_dim
                add("attn_q.weight", self.matrix(self.n_head * self.head_dim, d, 1.4))
                add("attn_k.weight", self.matrix(n_kv, d, 1.4))
                add("attn_v.weight", self.matrix(n_kv, d, 1.2))
                add("attn_output.weight", self.matrix(d, self.n_head * self.head_dim, 1.8))
            if kind == "f" or self.networks:
                if kind != "f":
                    add("ffn_norm" if self.arch == "falcon-h1" else "ffn_norm.weight", self.vector(d, 1.0, 0.2))
                self.network(add, i, None if i in self.dense else self.experts)
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))
        if not self.tied:
            w.add_tensor("output.weight", self.matrix(self.n_vocab, d, 3.0))

    def scan(self, add):
        d, (heads, groups, state, inner, conv) = N_EMBD, self.sizes
        mixed = inner + 2 * groups * state
        z, x, b, c, dt = (self.matrix(n, d, gain) for n, gain in (
            (inner, 1.2), (inner, 1.2), (groups * state, 1.5), (groups * state, 1.5), (heads, 1.0)))
        add("ssm_in.weight", np.concatenate([z, x, b, c, dt]))
        add("ssm_conv1d.weight", self.vector(mixed * conv, 0.0, 0.7).reshape(-1, conv))
        add("ssm_conv1d.bias", self.vector(mixed, 0.0, 0.4))
        add("ssm_dt.bias", self.vector(heads, -1.5, 0.7))
        add("ssm_a", -np.exp(self.vector(heads, -0.5, 0.7)).reshape(-1, 1))
        add("ssm_d", self.vector(heads, 1.2, 0.5).reshape(-1, 1))
        if self.normed:
            add("ssm_norm.weight", self.vector(inner, 1.0, 0.3).reshape(groups, -1))
        add("ssm_out.weight", self.matrix(d, inner, 1.4 if self.normed else 2.0))

    def network(self, add, i, experts):
        d, n_ff, gates = N_EMBD, self.n_ff or self.hidden, () if self.ungated else ("gate",)
        if experts:
            n, n_ff = experts[0], self.keys.get("expert_feed_forward_length", n_ff)
            n_ff = n_ff[i] if isinstance(n_ff, list) else n_ff
            add("ffn_gate_inp.weight", self.matrix(n, d, 2.0))
            width = self.latent or d
            for name, n_out, n_in in (*((g, n_ff, width) for g in gates), ("up", n_ff, width), ("down", width, n_ff)):
                add(f"ffn_{name}_exps.weight", np.stack([self.matrix(n_out, n_in, 1.5) for _ in range(n)]))
            if self.latent:
                add("ffn_latent_down.weight", self.matrix(width, d, 1.2))
                add("ffn_latent_up.weight", self.matrix(d, width, 1.2))
            if self.expert_bias:
                add("exp_probs_b.bias", self.vector(n, 0.0, 0.3))
            if not self.shared:
                return
            n_ff = self.shared
        suffix = "_shexp" if experts else ""
        for name, n_out, n_in in (*((g, n_ff, d) for g in gates), ("up", n_ff, d), ("down", d, n_ff)):
            add(f"ffn_{name}{suffix}.weight", self.matrix(n_out, n_in, 1.3))
        if "ffn" in self.bias:
            for name, n in (*((g, n_ff) for g in gates), ("up", n_ff), ("down", d)):
                add(f"ffn_{name}.bias", self.vector(n, 0.0, 0.3))


class ChannelScan(Scan):
    """The same with the scan of the first Mamba, whose channels have steps of their own, made of `rank` values. `normed`: what makes steps, keys and
    queries is normalised, "plain" without weights."""

    def __init__(self, name, arch, kinds, *, rank=4, normed=None, **rest):
        super().__init__(name, arch, kinds, heads=rank, normed=normed, **rest)
        del self.keys["ssm.group_count"]
        if normed == "plain":
            self.keys["ssm.dt_b_c_rms"] = True

    def scan(self, add):
        d, (rank, _, state, inner, conv) = N_EMBD, self.sizes
        add("ssm_in.weight", self.matrix(2 * inner, d, 1.2))
        add("ssm_conv1d.weight", self.vector(inner * conv, 0.0, 0.7).reshape(-1, conv))
        add("ssm_conv1d.bias", self.vector(inner, 0.0, 0.4))
        add("ssm_x.weight", np.concatenate([self.matrix(n, inner, 2.0) for n in (rank, state, state)]))
        if self.normed == "weights":
            for name, n in (("dt", rank), ("b", state), ("c", state)):
                add(f"ssm_{name}_norm.weight", self.vector(n, 1.0, 0.3))
        add("ssm_dt.weight", self.matrix(inner, rank, 1.0))
        add("ssm_dt.bias", self.vector(inner, -1.5, 0.7))
        add("ssm_a", -np.exp(self.vector(inner * state, -0.5, 0.9)).reshape(-1, state))
        add("ssm_d", self.vector(inner, 1.0, 0.5))
        add("ssm_out.weight", self.matrix(d, inner, 2.0))


class Plamo2(Scan):
    """Scans (m) whose steps, keys and queries are made after the convolutions, and normalised, with steps for heads; and attention (a) with norms on
    each head. Both halves of a layer have norms before and after."""

    RANK = 64  # llama.cpp takes it for granted

    def __init__(self, name, kinds, *, n_head=4, **rest):
        super().__init__(name, "plamo2", kinds, n_head=n_head, normed=None, **rest)
        self.keys |= {"ssm.group_count": 0, "attention.head_count": [n_head if kind == "a" else 0 for kind in kinds]}
        self.n_head_of_attention, self.n_head = n_head, None

    def add_tensors(self, w):
        d, n_head, d_head = N_EMBD, self.n_head_of_attention, self.head_dim
        w.add_tensor("token_embd.weight", self.matrix(self.n_vocab, d, (0.35 if self.tied else 1.0) * np.sqrt(d)))
        for i, kind in enumerate(self.kinds):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            add("attn_norm.weight", self.vector(d, 1.0, 0.2))
            if kind == "m":
                self.scan(add)
            else:
                q, k, v = (self.matrix(n * d_head, d, gain) for n, gain in ((n_head, 1.4), (self.kv, 1.4), (self.kv, 1.2)))
                add("attn_qkv.weight", np.concatenate([q, k, v]))
                for what, n in (("q", n_head), ("k", self.kv)):
                    add(f"attn_{what}_norm.weight", self.vector(n * d_head, 1.4, 0.3).reshape(n, d_head))
                add("attn_output.weight", self.matrix(d, n_head * d_head, 1.8))
            # The names of these have no suffix.
            add("post_attention_norm", self.vector(d, 0.8, 0.2))
            add("ffn_norm.weight", self.vector(d, 1.0, 0.2))
            add("ffn_up.weight", self.matrix(2 * self.n_ff, d, 1.3))
            add("ffn_down.weight", self.matrix(d, self.n_ff, 1.3))
            add("post_ffw_norm", self.vector(d, 0.8, 0.2))
        w.add_tensor("output_norm.weight", self.vector(d, 1.0, 0.2))
        if not self.tied:
            w.add_tensor("output.weight", self.matrix(self.n_vocab, d, 3.0))

    def scan(self, add):
        d, (heads, _, state, inner, conv) = N_EMBD, self.sizes
        add("ssm_in.weight", self.matrix(2 * inner, d, 1.2))
        add("ssm_conv1d.weight", self.vector(inner * conv, 0.0, 0.7).reshape(-1, conv))
        add("ssm_x.weight", self.matrix(2 * state + self.RANK, inner, 2.0))
        for name, n in (("dt", self.RANK), ("b", state), ("c", state)):
            add(f"ssm_{name}_norm", self.vector(n, 1.0, 0.3))
        add("ssm_dt.weight", self.matrix(heads, self.RANK, 1.0))
        add("ssm_dt.bias", self.vector(heads, -1.5, 0.7))
        add("ssm_a", -np.exp(self.vector(heads, -0.5, 0.7)))
        add("ssm_d", self.vector(heads, 1.2, 0.5))
        add("ssm_out.weight", self.matrix(d, inner, 2.0))


class Rwkv(Tiny):
    """Time mixing in the place of attention, and channel mixing in that of feed-forward networks unless the name says that these are Qwen2's.
    `ranks`: of what is made in two steps. `gated`, `normed`: whether results have gates, and norms."""

    def __init__(self, name, arch, *, head=32, ranks, gated=True, normed=True, **rest):
        self.head, self.ranks, self.gated, self.normed = head, ranks, gated, normed
        self.mixed = arch in ("rwkv6", "rwkv7")
        keys = {"wkv.head_size": head, **({} if self.mixed else {"token_shift_count": 1})}
        # What converters write of models without attention.
        super().__init__(name, arch, n_head=0, n_head_kv=None, head_dim=1, freq_base=None, layer_norm="bias" if self.mixed else None,
                         keys={**keys, **rest.pop("keys", {})}, **rest)
        self.explicit_head_dim = False

    def add_tensors(self, w):
        d = N_EMBD
        w.add_tensor("token_embd.weight", self.table((0.35 if self.tied else 1.0) * np.sqrt(d)))

        def norm(name, std=0.2):
            w.add_tensor(f"{name}.weight", self.vector(d, 1.0, std))
            if self.mixed:
                w.add_tensor(f"{name}.bias", self.vector(d, 0.0, 0.3))

        if self.mixed:
            norm("token_embd_norm")
        for i in range(self.n_layer):
            def add(name, tensor):
                w.add_tensor(f"blk.{i}.{name}", tensor)

            norm(f"blk.{i}.attn_norm")
            norm(f"blk.{i}.attn_norm_2" if self.mixed else f"blk.{i}.ffn_norm")
            self.time_mix(lambda name, tensor: add(f"time_mix_{name}.weight", tensor), i)
            if self.arch == "rwkv6qwen2":
                self.biases(add)
            if self.normed:
                add("time_mix_ln.weight", self.vector(d, 1.0, 0.3))
                add("time_mix_ln.bias", self.vector(d, 0.0, 0.3))
            if self.mixed:
                self.channel_mix(lambda name, tensor: add(f"channel_mix_{name}.weight", tensor))
            else:
                for name, n_out, n_in in (("gate", self.n_ff, d), ("up", self.n_ff, d), ("down", d, self.n_ff)):
                    add(f"ffn_{name}.weight", self.matrix(n_out, n_in, 1.3))
        norm("output_norm")
        if not self.tied:
            w.add_tensor("output.weight", self.table(3.0))


class Rwkv7(Rwkv):
    """`ranks`: of rates, of how far keys are renewed, of how far values lean to the first layer's, of gates."""

    def __init__(self, name, arch="rwkv7", *, ranks, **rest):
        names = [f"attention.{name}_lora_rank" for name in ("decay", "iclr", "value_residual_mix", "gate")]
        super().__init__(name, arch, ranks=ranks, keys={**dict(zip(names, ranks)), **rest.pop("keys", {})}, **rest)

    def time_mix(self, add, i):
        d, (decay, rate, lean, gate) = N_EMBD, self.ranks
        add("lerp_fused", self.rng.uniform(0.0, 1.0, (6 if self.gated else 5, 1, 1, d)).astype(np.float32))
        # Of the first layer's nothing is used.
        for part, rank, mean, gain in (("w", decay, -1.0, 1.8), ("a", rate, 0.0, 1.2), ("v", lean if i else rate, 0.0, 1.2)):
            add(f"{part}0", self.vector(d, mean, 1.0))
            add(f"{part}1", self.matrix(rank, d, 1.0))
            add(f"{part}2", self.matrix(d, rank, gain))
        if self.gated:
            add("g1", self.matrix(gate, d, 1.5))
            add("g2", self.matrix(d, gate, 2.5))
        add("k_k", self.vector(d, 1.0, 0.4))
        add("k_a", self.vector(d, 0.8, 0.4))
        add("r_k", self.vector(d, 0.0, 0.4))
        # Without norms results grow with queries and keys.
        small = 1.0 if self.normed else 0.5
        add("receptance", self.matrix(d, d, small))
        add("key", self.matrix(d, d, small))
        add("value", self.matrix(d, d, 0.3))
        add("output", self.matrix(d, d, 1.4))

    def channel_mix(self, add):
        add("lerp_k", self.rng.uniform(0.0, 1.0, N_EMBD).astype(np.float32))
        add("key", self.matrix(self.n_ff, N_EMBD, 1.2))
        add("value", self.matrix(N_EMBD, self.n_ff, 1.2))


class Rwkv6(Rwkv):
    """`ranks`: of how far tokens lean to the one before, of rates. `n_head_kv`: of heads that share keys and values. `apart`: factors of operands are
    tensors of their own."""

    def __init__(self, name, arch="rwkv6", *, ranks, kv=None, apart=False, **rest):
        self.kv, self.apart = kv, apart
        keys = {"time_mix_extra_dim": ranks[0], "time_decay_extra_dim": ranks[1], **({"attention.head_count_kv": kv} if kv else {})}
        super().__init__(name, arch, ranks=ranks, normed=arch == "rwkv6", keys={**keys, **rest.pop("keys", {})}, **rest)

    def time_mix(self, add, i):
        d, (lean, decay) = N_EMBD, self.ranks
        add("lerp_x", self.rng.uniform(0.0, 1.0, (1, 1, d)).astype(np.float32))
        factors = self.rng.uniform(0.0, 1.0, (5, 1, 1, d)).astype(np.float32)
        if self.apart:
            for part, vector in zip("wkvrg", factors):
                add(f"lerp_{part}", vector)
        else:
            add("lerp_fused", factors)
        add("w1", self.matrix(5 * lean, d, 1.0))
        add("w2", np.stack([self.matrix(d, lean, 0.5) for _ in range(5)]))
        if self.normed:
            add("first", self.vector(d, 0.0, 0.5).reshape(-1, self.head))
        # Rates of about 0.2 to 1.
        add("decay", self.vector(d, -1.0, 1.0))
        add("decay_w1", self.matrix(decay, d, 1.0))
        add("decay_w2", self.matrix(d, decay, 1.2))
        n_kv = (self.kv or d // self.head) * self.head
        for part, n, gain in (("key", n_kv, 1.0), ("value", n_kv, 0.3 if self.normed else 1.0), ("receptance", d, 1.0 if self.normed else 2.0), ("gate", d, 1.5)):
            add(part, self.matrix(n, d, gain))
        add("output", self.matrix(d, d, 1.4 if self.normed else 2.4))

    def biases(self, add):
        for part, n in (("key", self.kv * self.head), ("value", self.kv * self.head), ("receptance", N_EMBD)):
            add(f"time_mix_{part}.bias", self.vector(n, 0.0, 0.5))

    def channel_mix(self, add):
        for part in "kr":
            add(f"lerp_{part}", self.rng.uniform(0.0, 1.0, (1, 1, N_EMBD)).astype(np.float32))
        add("key", self.matrix(self.n_ff, N_EMBD, 1.2))
        add("value", self.matrix(N_EMBD, self.n_ff, 1.6))
        add("receptance", self.matrix(N_EMBD, N_EMBD, 1.5))


def to_nvfp4(values):
    """The values of NVFP4 next to these: such that quantising gives the same again."""
    nvfp4, sixteens = gguf.quants.NVFP4, values.reshape(-1, 16)
    half_scales = nvfp4.ue4m3_to_fp32(nvfp4.fp32_to_ue4m3(abs(sixteens).max(axis=1) / np.float32(6)))
    levels = np.array(nvfp4.kvalues, np.float32) * half_scales.astype(np.float32).reshape(-1, 1)
    codes = abs(levels[:, None, :] - sixteens[:, :, None]).argmin(axis=2)
    return np.take_along_axis(levels, codes, axis=1).reshape(values.shape)


def ramp(n, first, last):
    """Rope factors that grow geometrically, each of its own value so that a wrong order shows."""
    return np.geomspace(first, last, n)


SHIFTED = (512, 32, 1, 24, 3, 7)

# Runs of more tokens lie in NAME_long.json.gz, for a test of their own.
LONG = 1000


def models():
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    gemma = dict(qk_norm=True, sandwich=True, tied=True, freq_base=1000000.0, eps=1e-6)
    return [
        Tiny("llama", "llama", runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("llama_mha_tied", "llama", n_head_kv=None, freq_base=None, tied=True, n_vocab=301, n_ff=72),
        Tiny("llama_mqa", "llama", n_head_kv=1, freq_base=500000.0, eps=1e-2),
        Tiny("llama_linear", "llama", keys=linear),
        Tiny("llama_linear_old_key", "llama", keys={"rope.scale_linear": 2.0}),
        Tiny("llama_rope_freqs", "llama", freq_base=500000.0, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)},
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("llama_yarn", "llama", keys=yarn),
        Tiny("llama_head_dim", "llama", head_dim=20, n_rot=20),
        Tiny("llama_bias", "llama", bias=("q", "k", "v", "o", "ffn")),
        Tiny("llama_window_key", "llama", keys={"attention.sliding_window": 8}),
        Tiny("qwen", "qwen", n_head_kv=None, fused="qkv", bias=("qkv",), n_ff=80, ff_key=160, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("qwen2", "qwen2", bias=("q", "k", "v"), freq_base=1000000.0, eps=1e-6, runs=[(512, 48, 1), SHIFTED]),
        Tiny("qwen2_tied_yarn", "qwen2", bias=("q", "k", "v"), tied=True, keys=yarn, eps=1e-2),
        Tiny("qwen3", "qwen3", head_dim=32, qk_norm=True, freq_base=1000000.0, eps=1e-6),
        Tiny("qwen3_tied", "qwen3", head_dim=16, n_head_kv=4, qk_norm=True, tied=True, eps=1e-2),
        Tiny("qwen2vl", "qwen2vl", bias=("q", "k", "v"), eps=1e-6, keys={"rope.dimension_sections": [2, 3, 3, 0]}),
        Tiny("qwen3vl", "qwen3vl", head_dim=32, qk_norm=True, tied=True, eps=1e-2, keys={
            "rope.dimension_sections": [6, 5, 5, 0], "n_deepstack_layers": 3}),
        Tiny("qwen3vlmoe", "qwen3vlmoe", head_dim=32, n_ff=96, qk_norm=True, experts=(7, 3), eps=1e-2, keys={
            "expert_feed_forward_length": 32, "rope.dimension_sections": [6, 5, 5, 0]}),
        Tiny("glm4_sections", "glm4", sandwich=True, fused="ffn", n_rot=8, keys={"rope.dimension_sections": [2, 1, 1, 0]}),
        Tiny("nanbeige", "nanbeige", n_layer=2, eps=1e-2, keys={"num_loops": 3}, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)},
             runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("nanbeige_unnormed", "nanbeige", head_dim=32, n_rot=32, tied=True, keys={"num_loops": 2, "skip_loop_final_norm": True}),
        Tiny("nanbeige_once", "nanbeige", n_layer=2, keys={"num_loops": 1, "skip_loop_final_norm": False}),
        Tiny("xverse", "xverse", eps=1e-2),
        # As deep as the model that rotates, which is told by that.
        Tiny("baichuan", "baichuan", n_layer=32, emb=2.0, n_head_kv=None, n_ff=8, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Varying("deci", "deci", [(4, 2, 112), (4, 0, 64), (0, 0, 80), (0, 0, 0), (4, 1, 96), (2, 2, 48), (4, 2, 72)], head_dim=16, n_rot=16,
                freq_base=500000.0, eps=1e-2, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)},
                runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        # The last layers have no attention.
        Varying("deci_attention_first", "deci", [(4, 4, 48), (4, 1, 80), (0, 0, 0), (4, 0, 64), (0, 0, 96)], head_dim=16, n_rot=16, tied=True),
        Tiny("pangu", "pangu-embedded", bias=("q", "k", "v", "o"), eps=1e-2),
        Tiny("gemma3", "gemma3", n_layer=7, n_head_kv=1, head_dim=32, n_ff=48, keys={"attention.sliding_window": 8},
             runs=[(512, 48, 1), (512, 300, 6), SHIFTED], **gemma),
        Tiny("gemma3_pattern", "gemma3", n_layer=4, head_dim=24, n_ff=96, keys={
            "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, False, True],
            "rope.freq_base_swa": 3000.0}, **gemma),
        Tiny("gemma3_linear", "gemma3", n_layer=4, n_ff=96, keys={
            "attention.sliding_window": 8, "attention.sliding_window_pattern": 2,
            "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, **{**gemma, "eps": 1e-2}),
        Tiny("gemma3_softcap_untied", "gemma3", n_layer=3, n_ff=96, keys={
            "final_logit_softcapping": 5.0}, **{**gemma, "tied": False}),
        Lfm2("lfm2", "lfm2", [0, 0, 2, 0, 1, 0], n_ff=96, runs=[(512, 48, 1), (512, 300, 6)]),
        Lfm2("lfm2_attention_last", "lfm2", [0, 2, 0, 2], l_cache=4, n_ff=96, keys={"attention.sliding_window": 8}),
        Lfm2("lfm2moe", "lfm2moe", [0, 2, 0], experts=(8, 3), n_ff=96, keys={
            "expert_feed_forward_length": 32, "leading_dense_block_count": 1, "expert_gating_func": 2}),
        DeltaNet("qwen35", "qwen35", tied=True, n_ff=80, eps=1e-2, interval=4, keys={
            "rope.dimension_sections": [2, 1, 1, 0]}, runs=[(512, 48, 1), (512, 300, 6)]),
        DeltaNet("qwen35_guessing", "qwen35", heads=6, key_heads=3, state=8, conv=3, n_ff=80, guessing=True,
                 recurrent=[True, False, True], keys={"rope.dimension_sections": [2, 1, 1, 0]}),
        DeltaNet("qwen35moe", "qwen35moe", n_ff=None, experts=(7, 3), shared=48, eps=1e-2, keys={
            "rope.dimension_sections": [2, 1, 1, 0], "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48}),
        DeltaNet("qwen35moe_nvfp4", "qwen35moe", n_ff=None, experts=(4, 2), shared=64, nvfp4=True, recurrent=[True, False, True], keys={
            "rope.dimension_sections": [2, 1, 1, 0], "expert_feed_forward_length": 64,
            "expert_shared_feed_forward_length": 64}),
        DeltaNet("qwen3next", "qwen3next", n_ff=96, experts=(6, 4), shared=48, interleaved="rates", interval=2, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48}, runs=[(512, 48, 1), SHIFTED]),
        DeltaNet("qwen3next_fused", "qwen3next", n_ff=96, experts=(6, 4), shared=48, interleaved="all", keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48}),
        Ling3("bailingmoe3", [0, 0, 1, 0, 1], q_rank=48, rot=16, experts=(8, 3), shared=48, gate=2.5, expert_bias=True, eps=1e-2, keys={
            "expert_shared_feed_forward_length": 48, "expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_norm": True,
            "expert_weights_scale": 1.5, "swiglu_clamp_exp": [0.0, 0.0, 0.9, 0.0, 0.7], "swiglu_clamp_shexp": [0.8, 0.0, 0.0, 0.6, 0.0]},
            runs=[(512, 48, 1), (512, 300, 6)]),
        Ling3("bailingmoe3_sections", [0, 1], size=24, conv=3, lowest=-0.8, rot=32, experts=(5, 2), shared=32, expert_bias=True, tied=True, keys={
            "expert_shared_count": 1, "leading_dense_block_count": 0, "rope.dimension_sections": [6, 5, 5, 0]}),
        Gemma3n("gemma3n", [True, False] * 11, n_ff=128, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Gemma4("gemma4", [True, False, True, True, False, True, False, True], side=32, n_shared=3, n_ff=(64, 96), eps=1e-2,
               runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Gemma4("gemma4_plain", [True, True, False, True, False], keys={"final_logit_softcapping": 5.0}),
        Gemma4("gemma4_experts", [True, False, True], experts=(8, 3), eps=1e-2, keys={"expert_feed_forward_length": 32},
               runs=[(512, 48, 1), SHIFTED]),
        Tiny("llama_experts", "llama", n_ff=48, experts=(8, 2), runs=[(512, 48, 1), SHIFTED]),
        Tiny("qwen3moe", "qwen3moe", head_dim=32, n_ff=96, qk_norm=True, experts=(7, 3), eps=1e-2,
             keys={"expert_feed_forward_length": 32}),
        Tiny("qwen3moe_nvfp4", "qwen3moe", head_dim=32, n_ff=96, qk_norm=True, experts=(5, 2), nvfp4=True,
             keys={"expert_feed_forward_length": 64}),
        Tiny("olmoe", "olmoe", n_head_kv=4, n_ff=32, qk_norm="rows", experts=(16, 4), eps=1e-2,
             runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("granitemoe", "granitemoe", emb=1 / 6, n_ff=48, experts=(5, 2), eps=1e-2, keys={
            "embedding_scale": 6.0, "residual_scale": 0.5, "attention.scale": 0.15, "logit_scale": 3.0}),
        Tiny("granitemoe_shared", "granitemoe", emb=1 / 6, n_ff=48, experts=(5, 2), shared=80, eps=1e-2, keys={
            "embedding_scale": 6.0, "residual_scale": 0.5, "attention.scale": 0.15, "logit_scale": 3.0,
            "expert_shared_feed_forward_length": 80}),
        Tiny("qwen2moe", "qwen2moe", bias=("q", "k", "v"), n_ff=80, experts=(7, 3), shared=96, shared_gate=True, eps=1e-2,
             keys={"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 96},
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("deepseek", "deepseek", n_head_kv=4, experts=(8, 3), shared=64, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_count": 2, "leading_dense_block_count": 1,
            "expert_weights_scale": 1.5}, runs=[(512, 48, 1), SHIFTED]),
        DeepSeek2("deepseek2", q_rank=48, rot=16, experts=(16, 4), shared=32, expert_bias=True, eps=1e-2, keys={
            "expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 2.5,
            "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 4, "expert_group_used_count": 2,
            **yarn, "rope.scaling.yarn_log_multiplier": 0.1}, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        DeepSeek2("deepseek2_lite", rot=16, plain=24, value=32, experts=(8, 3), shared=64, tied=True, keys={
            "expert_shared_count": 2, "leading_dense_block_count": 1, **yarn, "rope.scaling.yarn_log_multiplier": 0.0707,
            "rope.scaling.attn_factor": 1.2}),
        DeepSeek2("deepseek2_dense", n_layer=2, rank=64, q_rank=48, keys={
            "leading_dense_block_count": 2, "attention.temperature_scale": 0.3, "attention.temperature_length": 16},
            runs=[(512, 48, 1), SHIFTED]),
        DeepSeek2("mistral4", "mistral4", q_rank=48, rot=16, experts=(8, 3), gate_up=True, shared=32, eps=1e-2, keys={
            "expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 1.5, "expert_gating_func": 1,
            "attention.temperature_scale": 0.3, "attention.temperature_length": 16, **yarn, "rope.scaling.yarn_log_multiplier": 0.1},
            runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        DeepSeek2("deepseek2_old", old=True, n_layer=2, n_ff=96, experts=(8, 3), gate_up=True, shared=32, eps=1e-2, keys={
            "expert_shared_count": 1, **yarn}),
        DeepSeek2("deepseek2_old_dense", old=True, q_rank=48, n_layer=2, rot=16, value=32, tied=True, keys={
            "leading_dense_block_count": 2}, runs=[(512, 48, 1), SHIFTED]),
        DeepSeek2("minicpm3", "minicpm3", old=True, q_rank=48, rot=16, value=32, emb=1 / 12, tied=True, n_ctx=1024, eps=1e-2,
                  tensors={"rope_factors_long.weight": ramp(8, 1.1, 40.0), "rope_factors_short.weight": ramp(8, 1.0, 3.0)},
                  keys={"rope.scaling.original_context_length": 256}, runs=[(256, 48, 1), (512, 48, 1)]),
        DeepSeek2("plm", "plm", old=True, rot=16, plain=24, value=32, ungated=True, tied=True, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        KimiLinear("kimi_linear", "kkaka", rot=16, experts=(16, 4), shared=32, expert_bias=True, eps=1e-2, keys={
            # What converters write, which means nothing.
            "attention.value_length": 24, "expert_shared_count": 1, "leading_dense_block_count": 1, "expert_weights_scale": 2.5, "expert_gating_func": 2},
            runs=[(512, 48, 1), (512, 300, 6)]),
        KimiLinear("kimi_linear_fused", "akk", state=24, conv=3, fused=True, n_head=3, rot=8, plain=24, value=32, experts=(8, 3), shared=64,
                   expert_bias=True, keys={"expert_shared_count": 2, "expert_gating_func": 1}),
        Tiny("bailingmoe", "bailingmoe", experts=(8, 3), shared=32, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_count": 1, "expert_weights_norm": True}),
        Tiny("bailingmoe2", "bailingmoe2", fused="qkv", qk_norm=True, n_rot=8, experts=(16, 4), shared=48, expert_bias=True,
             eps=1e-2, keys={
                 "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48, "expert_shared_count": 1,
                 "leading_dense_block_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True,
                 "expert_gating_func": 2, "expert_group_count": 4, "expert_group_used_count": 2}),
        Tiny("dots1", "dots1", n_head_kv=4, qk_norm=True, experts=(8, 3), shared=64, expert_bias=True, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_count": 2, "leading_dense_block_count": 1,
            "expert_weights_scale": 2.0, "expert_gating_func": 2}),
        Tiny("glm4moe", "glm4moe", n_rot=8, bias=("q", "k", "v"), ffn_norm="post_attention_norm", experts=(8, 3), shared=32,
             expert_bias=True, eps=1e-2, keys={
                 "expert_feed_forward_length": 32, "expert_shared_count": 1, "leading_dense_block_count": 1,
                 "expert_weights_norm": True}),
        Tiny("glm4moe_normed", "glm4moe", n_rot=8, qk_norm=True, ffn_norm="post_attention_norm", experts=(8, 3), shared=32,
             expert_bias=True, tied=True, keys={
                 "expert_feed_forward_length": 32, "expert_shared_count": 1, "expert_weights_scale": 0.5}),
        Tiny("ernie4_5_moe", "ernie4_5-moe", n_layer=4, experts=(8, 3), shared=64, expert_bias=True, tied=True, eps=1e-2,
             keys={"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64,
                   "leading_dense_block_count": 1, "interleave_moe_layer_step": 1}),
        Tiny("hunyuan_moe", "hunyuan-moe", n_ff=48, qk_norm=True, experts=(8, 1), shared=64, eps=1e-2,
             keys={"expert_feed_forward_length": 48, "expert_shared_feed_forward_length": 64}),
        Tiny("hy_v3", "hy_v3", head_dim=32, gate=1.2, qk_norm=True, experts=(8, 3), shared=48, expert_bias=True, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48, "leading_dense_block_count": 1,
            "expert_weights_norm": True, "expert_weights_scale": 2.5}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("hy_v3_unsaid", "hy_v3", n_layer=2, n_ff=96, qk_norm=True, fused="qkv", gate_up=True, experts=(5, 2), shared=48, tied=True, keys={
            "expert_feed_forward_length": 0, "expert_gating_func": 1}),
        Tiny("minimax_m2", "minimax-m2", head_dim=32, n_rot=16, n_ff=32, qk_norm="rows", experts=(8, 3), expert_bias=True, eps=1e-2,
             keys={"expert_feed_forward_length": 32, "expert_gating_func": 2}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("exaone_moe", "exaone-moe", n_layer=5, qk_norm=True, experts=(16, 4), shared=48, expert_bias=True, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48, "expert_shared_count": 1,
            "leading_dense_block_count": 1, "expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True,
            "attention.sliding_window": 8}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("exaone_moe_pattern", "exaone-moe", n_layer=4, qk_norm=True, experts=(8, 3), shared=32, keys={
            "expert_feed_forward_length": 32, "expert_gating_func": 2, "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, False, False, True]},
            tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}),
        Tiny("dbrx", "dbrx", fused="qkv", layer_norm="plain", ffn_norm="attn_output_norm", n_ff=48, experts=(8, 3), eps=1e-2,
             keys={"attention.clamp_kqv": 1.5}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("arctic", "arctic", n_ff=48, experts=(8, 2), beside=N_EMBD, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        # Old files, which leave their factors unsaid. Products are as large as these have them.
        Tiny("grok", "grok", emb=1 / 128, n_ff=48, sandwich=True, post_names=("attn_output_norm.weight", "layer_output_norm.weight"), experts=(8, 2),
             eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("grok_beside", "grok", emb=0.5, gate=1.0, n_ff=96, sandwich=True, post_names=("attn_output_norm.weight", "post_ffw_norm.weight"), experts=(6, 2),
             beside=96, eps=1e-2, keys={
                 "expert_feed_forward_length": 32, "embedding_scale": 2.0, "logit_scale": 0.7, "attention.output_scale": 0.4,
                 "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "router_logit_softcapping": 1.0,
                 "attention.temperature_length": 16, **yarn, "rope.scaling.original_context_length": 256}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("grok_capped", "grok", emb=0.5, tied=True, n_ff=48, sandwich=True, post_names=("attn_output_norm.weight", "layer_output_norm.weight"),
             experts=(5, 2), keys={
                 "embedding_scale": 2.0, "logit_scale": 0.7, "attention.output_scale": 0.3, "attn_logit_softcapping": 2.0, **yarn,
                 "rope.scaling.original_context_length": 256, "rope.scaling.yarn_ext_factor": 0.7, "rope.scaling.yarn_attn_factor": 1.3, "rope.scaling.yarn_beta_fast": 2.0,
                 "rope.scaling.yarn_beta_slow": 0.5}),
        Tiny("afmoe", "afmoe", n_layer=5, emb=0.04, qk_norm=True, sandwich=True, attn_gate=True, experts=(16, 4), shared=32,
             expert_bias=True, eps=1e-2, keys={
                 "expert_feed_forward_length": 32, "expert_shared_count": 1, "leading_dense_block_count": 1,
                 "expert_weights_scale": 1.5, "expert_weights_norm": True, "attention.sliding_window": 8,
                 "rope.freq_base_swa": 3000.0}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("muse_glimmer", "muse-glimmer", n_layer=5, emb=0.2, qk_norm=True, sandwich=True, attn_gate=True, eps=1e-2, keys={
            "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0, "logit_scale": 0.4, "final_logit_softcapping": 5.0},
            runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("muse_glimmer_flags", "muse-glimmer", n_layer=4, head_dim=32, qk_norm=True, sandwich=True, attn_gate=True, keys={
            "attention.sliding_window": 12, "attention.sliding_window_pattern": [False, True, True, False], "logit_scale": 1.5}),
        Tiny("smallthinker", "smallthinker", n_ff=32, experts=(8, 3), eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_gating_func": 2}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("smallthinker_windows", "smallthinker", n_layer=5, gate=1.0, n_ff=32, experts=(8, 3), keys={
            "expert_feed_forward_length": 32, "expert_gating_func": 1, "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0}),
        # Positions in more than one chunk, whose length is the family's.
        Tiny("llama4", "llama4", n_layer=5, n_ctx=8448, n_ff=64, experts=(8, 2), shared=32, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "interleave_moe_layer_step": 2},
            tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}, runs=[(512, 48, 1), (8448, 8320, 128)]),
        # Gates far enough from 0 for their clamps to matter.
        Tiny("gpt_oss", "gpt-oss", n_layer=3, head_dim=24, n_rot=24, bias=("q", "k", "v", "o", "experts"), sinks=True,
             ffn_norm="post_attention_norm", n_ff=48, experts=(8, 3), gate=2.5, eps=1e-2, freq_base=150000.0, keys={
                 "expert_feed_forward_length": 48, "attention.sliding_window": 8, **yarn},
             runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("gpt_oss_pattern", "gpt-oss", n_layer=3, head_dim=16, n_rot=16, n_head_kv=1, sinks=True,
             bias=("q", "k", "v", "o", "experts"), ffn_norm="post_attention_norm", n_ff=48, experts=(5, 2), keys={
                 "expert_feed_forward_length": 48, "attention.sliding_window": 16, "rope.freq_base_swa": 3000.0,
                 "attention.sliding_window_pattern": 3}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("gptneox", "gptneox", n_head_kv=None, n_rot=8, fused="qkv", layer_norm="bias", ungated=True,
             bias=("qkv", "o", "ffn"), keys={"use_parallel_residual": True}, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("gptneox_in_turn", "gptneox", n_head_kv=None, n_rot=16, fused="qkv", layer_norm="bias", ungated=True,
             bias=("qkv", "o", "ffn"), keys={"use_parallel_residual": False}),
        Tiny("falcon", "falcon", n_head_kv=1, fused="qkv", layer_norm="bias", ungated=True, ffn_norm=None, tied=True,
             emb=0.35, eps=1e-2),
        Tiny("falcon_two_norms", "falcon", fused="qkv", layer_norm="bias", ungated=True, ffn_norm="attn_norm_2"),
        Tiny("phi2", "phi2", n_head_kv=None, n_rot=8, layer_norm="bias", ungated=True, ffn_norm=None,
             bias=("q", "k", "v", "o", "ffn", "output"), eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("starcoder2", "starcoder2", layer_norm="bias", ungated=True, bias=("q", "k", "v", "o", "ffn"), eps=1e-2,
             tied=True, freq_base=100000.0),
        Tiny("jais2", "jais2", layer_norm="bias", ungated=True, bias=("q", "k", "v", "o", "ffn"), eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("nemotron", "nemotron", n_rot=8, layer_norm="bias", ungated=True, eps=1e-2),
        Tiny("stablelm", "stablelm", n_rot=4, layer_norm="bias", bias=("q", "k", "v"), eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("stablelm_parallel", "stablelm", n_rot=8, layer_norm="bias", ffn_norm=None),
        Tiny("stablelm_normed", "stablelm", n_rot=8, layer_norm="bias", ffn_norm=None, qk_norm="own", eps=1e-2),
        Alternating("mimo2", "mimo2", [(4, 1, 0), (4, 2, 1), (4, 4, 1), (4, 1, 0), (4, 2, 1)], head_dim=24, value_dim=16, n_rot=8, kv_only=True, numbers=True,
                    fused="qkv", sinks=True, n_ff=96, experts=(8, 3), expert_bias=True, eps=1e-2, freq_base=500000.0, keys={
                        "expert_feed_forward_length": 32, "leading_dense_block_count": 1, "attention.sliding_window": 8,
                        "attention.value_scale": 0.6, "rope.freq_base_swa": 3000.0}, runs=[(512, 48, 1), (512, 300, 6)]),
        Alternating("mimo2_split", "mimo2", [(4, 2, 1), (4, 1, 0)], head_dim=16, value_dim=32, n_rot=16, kv_only=True,
                    n_ff=96, experts=(5, 2), keys={
                        "expert_feed_forward_length": 48, "leading_dense_block_count": 0, "attention.sliding_window": 16}),
        Alternating("step35", "step35", [(4, 2, 0), (6, 3, 1), (6, 2, 1), (4, 2, 0), (6, 3, 1)], head_dim=16, n_rot=16, qk_norm=True, attn_gate="heads",
                    n_ff=96, experts=(8, 3), shared=48, gate=2.5, expert_bias=True, eps=1e-2, freq_base=500000.0,
                    tensors={"rope_freqs.weight": np.concatenate([ramp(4, 1.0, 8.0), np.ones(4)])}, keys={
                        "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48, "leading_dense_block_count": 2,
                        "expert_weights_norm": True, "expert_weights_scale": 1.5, "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0,
                        "swiglu_clamp_exp": [0.0, 0.0, 0.9, 0.0, 0.7], "swiglu_clamp_shexp": [0.0, 0.8, 0.0, 0.6, 0.0]},
                    runs=[(512, 48, 1), (512, 300, 6)]),
        Alternating("step35_plain", "step35", [(2, 1, 1), (4, 4, 0)], head_dim=24, n_rot=24, n_ff=80, experts=(5, 2), shared=32, keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 32, "leading_dense_block_count": 1,
            "expert_gating_func": 1, "attention.sliding_window": 16, "swiglu_clamp_shexp": 0.7}),
        Alternating("laguna", "laguna", [(4, 2, 0), (6, 2, 1), (6, 2, 1), (6, 2, 1), (4, 2, 0)], head_dim=16, n_rot=8, qk_norm=True, attn_gate="heads",
                    pattern=False, gate=0.5, n_ff=96, experts=(8, 3), shared=48, expert_bias=True, eps=1e-2, freq_base=500000.0, keys={
                        "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48, "leading_dense_block_count": 1,
                        "expert_weights_norm": True, "expert_weights_scale": 1.5, "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0,
                        "rope.dimension_count_swa": 16, **yarn}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("laguna_values", "laguna", head_dim=24, n_rot=24, qk_norm=True, attn_gate=True, n_ff=80, experts=(5, 2), shared=32, expert_bias=True,
             tied=True, keys={"expert_feed_forward_length": 32, "leading_dense_block_count": 2, "expert_gating_func": 2}, runs=[(512, 48, 1), SHIFTED]),
        Alternating("spark2_5", "spark2_5", [(4, 2, 1), (6, 3, 1), (4, 2, 0), (6, 2, 1), (4, 2, 0)], head_dim=16, n_rot=8, attn_gate="heads",
                    fused="qkv", n_ff=96, eps=1e-2, keys={
                        "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0, "rope.dimension_count_swa": 16},
                    runs=[(512, 48, 1), (512, 300, 6)]),
        Alternating("spark2_5_tied", "spark2_5", [(2, 1, 0), (4, 4, 1)], head_dim=24, n_rot=24, attn_gate="heads", n_ff=80, tied=True, keys={
            "attention.sliding_window": 16}),
        Tiny("maple", "maple", n_layer=5, head_dim=24, n_rot=16, qk_norm=True, n_ff=96, experts=(8, 3), gate=2.5, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, True, False, True, False],
            "rope.freq_base_swa": 3000.0, "rope.dimension_count_swa": 8, "swiglu_clamp_exp": [0.9, 0.8, 0.0, 0.7, 1.1]},
            runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("maple_plain", "maple", n_layer=2, qk_norm=True, n_head_kv=4, experts=(5, 2), gate=2.5, keys={
            "expert_feed_forward_length": 48, "attention.sliding_window": 16, "attention.sliding_window_pattern": [False, True],
            "swiglu_clamp_exp": 0.8}),
        Tiny("grovemoe", "grovemoe", gate=1.0, head_dim=32, n_rot=32, qk_norm=True, n_ff=96, experts=(9, 3), chunk=48, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_chunk_feed_forward_length": 48, "experts_per_group": 3, "expert_group_scale": 0.6},
            runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("grovemoe_unsaid", "grovemoe", n_ff=96, qk_norm=True, experts=(8, 3), chunk=16, tied=True, keys={
            "expert_feed_forward_length": 16, "experts_per_group": 2, "expert_group_scale": 0.4}),
        Lightning("minimax_01", [True, True, False, True, False], n_layer=5, head_dim=16, n_rot=8, n_ff=32, experts=(8, 3), eps=1e-2, keys={
            "residual_scale": 1.8}, runs=[(512, 48, 1), (512, 300, 6)]),
        Lightning("minimax_01_interval", interval=2, n_layer=4, n_head=2, n_head_kv=1, head_dim=24, n_rot=24, n_ff=48, experts=(5, 2), fused="qkv",
                  keys={"residual_scale": 1.3}),
        Talkie("talkie", n_layer=4, eps=1e-2, keys={"logit_scale": 0.6}, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Talkie("talkie_wide", n_head_kv=4, head_dim=24, n_rot=24, keys={"logit_scale": 1.5}),
        Tiny("orion", "orion", layer_norm="bias", eps=1e-2),
        Tiny("codeshell", "codeshell", fused="qkv", layer_norm="bias", ungated=True, bias=("qkv", "o", "ffn"), eps=1e-2,
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("gpt2", "gpt2", n_head_kv=None, n_ctx=128, freq_base=None, fused="qkv", layer_norm="bias", ungated=True, positions=True,
             bias=("qkv", "o", "ffn"), tied=True, eps=1e-2, runs=[(128, 48, 1), (128, *SHIFTED[1:])]),
        Tiny("starcoder", "starcoder", emb=0.5, n_head_kv=1, n_ctx=128, freq_base=None, fused="qkv", layer_norm="bias", ungated=True,
             positions=True, bias=("qkv", "o", "ffn"), eps=1e-2),
        # Contexts in which members share the keys of one query out.
        Tiny("bloom", "bloom", n_ctx=1024, n_head_kv=None, freq_base=None, fused="qkv", layer_norm="bias", ungated=True, embed_norm=True,
             bias=("qkv", "o", "ffn"), tied=True, eps=1e-2, runs=[(512, 48, 1), (1024, 640, 20), SHIFTED]),
        Tiny("mpt", "mpt", n_ctx=1024, freq_base=None, fused="qkv", layer_norm="plain", ungated=True, tied=True, eps=1e-2, keys={
            "attention.max_alibi_bias": 6.0, "attention.clamp_kqv": 1.5}, runs=[(512, 48, 1), (1024, 640, 20), SHIFTED]),
        Tiny("mpt_learned", "mpt", n_head_kv=None, n_ctx=128, freq_base=None, fused="qkv", layer_norm="bias", ungated=True,
             positions=True, bias=("qkv", "o", "ffn"), keys={"attention.max_alibi_bias": 0.0}),
        Tiny("jais", "jais", n_head_kv=None, freq_base=None, fused="qkv", layer_norm="bias", bias=("qkv", "o", "ffn"), eps=1e-2, keys={
            "attention.max_alibi_bias": 8.0}, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("command_r", "command-r", layer_norm="plain", ffn_norm=None, tied=True, eps=1e-2, freq_base=500000.0,
             keys={"logit_scale": 0.5}, runs=[(512, 48, 1), SHIFTED]),
        # As deep as the model that has norms on queries and keys, which is told by that.
        Tiny("command_r_normed", "command-r", n_layer=64, emb=4.0, n_head_kv=1, n_ff=8, layer_norm="plain", ffn_norm=None, tied=True,
             qk_norm="own", eps=1e-2, keys={"logit_scale": 0.1}, runs=[(512, 48, 2), SHIFTED]),
        Tiny("cohere2", "cohere2", n_layer=5, layer_norm="plain", ffn_norm=None, tied=True, eps=1e-2,
             keys={"logit_scale": 2.0, "attention.sliding_window": 8}, runs=[(512, 48, 1), (512, 300, 6)]),
        # Experts after a layer without them, whose attention sees everything and has positions all the same.
        Tiny("cohere2moe", "cohere2moe", n_layer=6, emb=1.5, gate=1.5, layer_norm="plain", ffn_norm=None, experts=(8, 3), shared=64, tied=True, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64, "expert_shared_count": 2,
            "leading_dense_block_count": 1, "logit_scale": 0.25, "attention.sliding_window": 8}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("cohere2moe_rms", "cohere2moe", n_layer=3, ffn_norm=None, experts=(8, 3), gate_up=True, eps=1e-2, keys={
            "expert_feed_forward_length": 32, "expert_weights_norm": True, "expert_weights_scale": 1.5, "expert_gating_func": 1,
            "leading_dense_block_count": 0, "logit_scale": 1.25, "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, False, True]}),
        Tiny("arcee", "arcee", ungated=True, eps=1e-2, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}),
        Tiny("gemma", "gemma", n_head_kv=1, head_dim=32, n_ff=96, tied=True, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("gemma2", "gemma2", n_layer=5, head_dim=32, n_ff=96, keys={
            "attention.sliding_window": 8, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
            runs=[(512, 48, 1), (512, 300, 6), SHIFTED], sandwich=True, tied=True, eps=1e-2),
        Tiny("gemma2_pattern", "gemma2", n_layer=4, head_dim=24, n_ff=96, keys={
            "attention.sliding_window": 8, "attention.sliding_window_pattern": 3, "rope.freq_base_swa": 3000.0},
            sandwich=True, tied=True, eps=1e-6),
        Tiny("granite", "granite", emb=1 / 6, keys={
            "embedding_scale": 6.0, "residual_scale": 0.5, "attention.scale": 0.15, "logit_scale": 3.0},
            runs=[(512, 48, 1), SHIFTED], eps=1e-2),
        Tiny("granite_unturned", "granite", tied=True, keys={"logit_scale": 0.5, "rope.scaling.finetuned": False}),
        Tiny("granite_swa", "granite_swa", n_layer=5, emb=1 / 6, sinks=True, bias=("o",), eps=1e-2, keys={
            "embedding_scale": 6.0, "residual_scale": 0.5, "attention.scale": 0.15, "logit_scale": 3.0, "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [False, True, True, True, False],
            "attention.rope_pattern": [False, True, True, False, True]}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("granite_swa_experts", "granite_swa", n_layer=2, emb=1 / 6, n_ff=48, sinks=True, experts=(5, 2), gate_up=True, shared=80, tied=True,
             eps=1e-2, keys={
                 "embedding_scale": 6.0, "residual_scale": 0.5, "logit_scale": 0.5, "attention.sliding_window": 16,
                 "attention.sliding_window_pattern": [True, False], "expert_shared_feed_forward_length": 80}),
        Tiny("minicpm", "minicpm", n_layer=6, emb=1 / 12, eps=1e-2),
        Tiny("minicpm_longrope", "minicpm", emb=0.3, n_ctx=1024, tensors={
            "rope_factors_long.weight": ramp(8, 1.1, 40.0), "rope_factors_short.weight": ramp(8, 1.0, 3.0)},
            keys={"embedding_scale": 3.0, "residual_scale": 1.6, "logit_scale": 2.0, "rope.scaling.type": "longrope",
                  "rope.scaling.original_context_length": 256}, runs=[(256, 48, 1), (512, 48, 1)]),
        Tiny("smollm3", "smollm3", n_layer=5, freq_base=500000.0, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("smollm3_tied", "smollm3", n_layer=4, tied=True, eps=1e-2),
        Tiny("olmo", "olmo", n_head_kv=4, layer_norm="bare", eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("olmo_clipped", "olmo", layer_norm="bare", tied=True, keys={"attention.clamp_kqv": 1.5}),
        Tiny("olmo2", "olmo2", qk_norm="rows", post_norm=True, freq_base=500000.0, eps=1e-2,
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("olmo2_windows", "olmo2", n_layer=5, n_head_kv=4, qk_norm="rows", post_norm=True, eps=1e-6, keys={
            "attention.sliding_window": 8, **yarn, "rope.scaling.attn_factor": 1.2}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("mistral3", "mistral3", head_dim=32, freq_base=1000000.0, eps=1e-2, keys={
            "attention.temperature_scale": 0.3, **yarn, "rope.scaling.yarn_log_multiplier": 1.0,
            "rope.scaling.yarn_beta_fast": 2.0}, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("mistral3_plain", "mistral3", tied=True, keys={**yarn, "rope.scaling.yarn_log_multiplier": 0.5}),
        Tiny("internlm2", "internlm2", eps=1e-2),
        Tiny("ernie4_5", "ernie4_5", tied=True, freq_base=500000.0, eps=1e-2),
        Tiny("paddleocr", "paddleocr", head_dim=32, bias=("q", "k", "v", "o"), tied=True, freq_base=500000.0, eps=1e-2, keys={
            "rope.dimension_sections": [4, 6, 6, 0]}, runs=[(512, 48, 1), (512, 300, 6)]),
        # More tokens than there are for images.
        Tiny("chameleon", "chameleon", n_vocab=8300, silent=(4, 8196), qk_norm="own", bias=("norms",), tied=True, eps=1e-2,
             runs=[(512, 48, 6), (512, 300, 30), (512, 32, 4, 24, 3, 7)]),
        Tiny("chameleon_after", "chameleon", n_vocab=8250, silent=(4, 8196), n_head_kv=4, qk_norm="own", tied=True, keys={
            "swin_norm": True}, runs=[(512, 48, 4)]),
        Varying("openelm", "openelm", [(4, 1, 48), (4, 1, 80), (4, 1, 96), (6, 2, 128), (6, 3, 112), (6, 3, 64)], head_dim=16, n_rot=16, qk_norm=True, fused="qkv",
                tied=True, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("exaone", "exaone", freq_base=500000.0, eps=1e-2, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}),
        Tiny("seed_oss", "seed_oss", head_dim=32, bias=("q", "k", "v"), ffn_norm="post_attention_norm", eps=1e-2,
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("exaone4", "exaone4", qk_norm=True, post_norm=True, tied=True, eps=1e-2,
             tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}, runs=[(512, 48, 1), SHIFTED]),
        Scan("granitehybrid", "granitehybrid", "mmam", n_ff=80, emb=1 / 6, eps=1e-2, keys={
            "embedding_scale": 6.0, "residual_scale": 0.5, "attention.scale": 0.15, "logit_scale": 3.0,
            "rope.scaling.finetuned": False}, runs=[(512, 48, 1), (512, 300, 6)]),
        Scan("granitehybrid_experts", "granitehybrid", "mam", heads=8, groups=1, state=24, conv=3, n_ff=48, experts=(5, 2),
             shared=80, tied=True, keys={"expert_shared_feed_forward_length": 80}),
        Scan("falcon_h1", "falcon-h1", "bbb", heads=6, groups=1, state=20, inner=144, normed=False, n_ff=80, head_dim=32,
             n_head_kv=2, varies=False, eps=1e-2, freq_base=1e6, runs=[(512, 48, 1), (512, 300, 6)]),
        Scan("falcon_h1_normed", "falcon-h1", "bb", heads=4, groups=2, state=16, inner=96, conv=2, n_ff=80,
             n_head_kv=1, varies=False, tied=True),
        Scan("nemotron_h", "nemotron_h", "mfmafmf", heads=8, groups=4, state=12, inner=72, networks=False, ungated=True,
             head_dim=32, n_ff=80, bias=("ffn",), eps=1e-2, keys={"attention.layer_norm_epsilon": 0.5}, runs=[(512, 48, 1), (512, 300, 6)]),
        Scan("nemotron_h_moe", "nemotron_h_moe", "mfafm", heads=4, groups=2, networks=False, ungated=True, n_ff=32,
             head_dim=32, experts=(8, 3), shared=48, expert_bias=True, eps=1e-2, keys={
                 "attention.layer_norm_epsilon": 1e-5, "expert_feed_forward_length": 32,
                 "expert_shared_feed_forward_length": 48, "expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 2.5}),
        Scan("nemotron_h_moe_latents", "nemotron_h_moe", "mfaf", heads=4, groups=1, networks=False, ungated=True, n_ff=48,
             head_dim=16, experts=(6, 3), shared=80, latent=32, expert_bias=True, tied=True, eps=1e-2, keys={
                 "attention.layer_norm_epsilon": 1e-5, "expert_feed_forward_length": 48, "moe_latent_size": 32,
                 "expert_shared_feed_forward_length": 80, "expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 1.5},
             runs=[(512, 48, 1), (512, 300, 6)]),
        Scan("nemotron_h_moe_varying", "nemotron_h_moe", "mfaff", heads=2, groups=1, networks=False, ungated=True, n_ff=48,
             head_dim=16, experts=(6, None), shared=48, latent=32, expert_bias=True, keys={
                 "attention.layer_norm_epsilon": 1e-5, "expert_feed_forward_length": [0, 48, 0, 80, 32], "expert_used_count": [0, 2, 0, 5, 3],
                 "moe_latent_size": 32, "expert_shared_feed_forward_length": 48, "expert_shared_count": 1, "expert_weights_norm": True,
                 "expert_weights_scale": 1.5}),
        Scan("mamba2", "mamba2", "mmm", heads=8, groups=2, state=16, networks=False, varies=False,
             eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        Scan("mamba2_tied", "mamba2", "mm", heads=6, groups=3, state=40, inner=120, conv=5, networks=False, varies=False,
             tied=True),
        Rwkv7("rwkv7", ranks=(8, 16, 24, 8), eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        Rwkv7("arwkv7", "arwkv7", ranks=(16, 8, 8, 24), eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        Rwkv6("rwkv6", ranks=(8, 16), eps=1e-2, keys={"rescale_every_n_layers": 2}, runs=[(512, 48, 1), (512, 300, 6)]),
        Rwkv6("rwkv6_apart", ranks=(16, 8), n_layer=2, apart=True),
        Rwkv6("rwkv6qwen2", "rwkv6qwen2", ranks=(8, 16), kv=1, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        Rwkv7("arwkv7_plain", "arwkv7", ranks=(8, 8, 16, 0), n_layer=2, gated=False, normed=False),
        ChannelScan("mamba", "mamba", "mmm", networks=False, varies=False, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        ChannelScan("mamba_normed", "mamba", "mm", rank=5, state=10, conv=3, normed="plain", networks=False, varies=False, tied=True,
                    eps=1e-2),
        ChannelScan("jamba", "jamba", "mamam", normed="weights", n_ff=48, experts=(5, 2), dense=(0, 2, 3), eps=1e-2,
                    runs=[(512, 48, 1), (512, 300, 6)]),
        # As released, llama.cpp goes round for ever where the first layer has no attention, as it has none in the models themselves.
        Plamo2("plamo2", "amam", heads=4, n_ff=80, head_dim=32, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6)]),
        Plamo2("plamo2_tied", "amm", heads=6, state=10, inner=72, conv=3, n_ff=64, head_dim=16, n_head_kv=1, tied=True),
        # Files of models without experts say that there is one.
        ChannelScan("jamba_dense", "jamba", "ma", rank=5, state=10, conv=3, normed="weights", n_ff=80, experts=(1, 1), dense=(0, 1),
                    n_head_kv=1, tied=True),
        # As deep as the model whose layers alternate, which is told by that.
        Tiny("exaone4_windows", "exaone4", n_layer=64, emb=6.0, n_head_kv=1, n_ff=8, qk_norm=True, post_norm=True,
             keys={"attention.sliding_window": 8}, runs=[(512, 48, 2), (512, 300, 12)]),
        # As deep as the model that has linear biases, which is told by that.
        Tiny("baichuan_slopes", "baichuan", n_layer=40, emb=4.0, n_head_kv=None, n_ff=8, eps=1e-2),
        # Heads of which there is no power of two.
        Tiny("refact", "refact", n_head=6, head_dim=16, n_head_kv=1, freq_base=None, eps=1e-2,
             runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        Tiny("bitnet", "bitnet", tied=True, sub_norm=True, scales=True, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("bitnet_plain", "bitnet", n_head_kv=4, tied=True, sub_norm=True, keys={
            "rope.scaling.type": "linear", "rope.scaling.factor": 1.0}),
        Tiny("chatglm", "chatglm", fused=True, n_rot=8, bias=("qkv",), freq_base=5000000.0, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("chatglm_tied", "chatglm", fused="ffn", n_rot=8, bias=("q", "k", "v"), tied=True),
        Tiny("glm4", "glm4", sandwich=True, fused="ffn", n_rot=8, bias=("q", "k", "v"), eps=1e-2,
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("hunyuan", "hunyuan-dense", head_dim=32, qk_norm=True, tied=True, eps=1e-2,
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("mellum", "mellum", n_layer=5, n_ff=96, qk_norm=True, experts=(8, 3), eps=1e-2, keys={
            "expert_feed_forward_length": 32, "attention.sliding_window": 8, **yarn, "rope.scaling.attn_factor": 1.2},
            runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("mellum_pattern", "mellum", n_layer=4, n_ff=96, qk_norm=True, experts=(6, 2), keys={
            "expert_feed_forward_length": 32, "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, False, False, True]},
            runs=[(512, 48, 1), SHIFTED]),
        Tiny("mellum_global", "mellum", n_ff=96, n_head_kv=4, qk_norm=True, experts=(5, 3), keys={"expert_feed_forward_length": 48}),
        Tiny("maincoder", "maincoder", head_dim=32, n_rot=32, qk_norm=True, tied=True, freq_base=1000000.0, eps=1e-2,
             runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("plamo", "plamo", n_head=8, n_head_kv=2, ffn_norm=None, eps=1e-2, runs=[(512, 48, 1), (512, 300, 6), SHIFTED]),
        # Eight layers, so that there is one without a window.
        Tiny("plamo3", "plamo3", n_layer=8, n_ff=64, head_dim=24, n_rot=24, qk_norm=True, sandwich=True, fused=True, tied=True, freq_base=500000.0,
             post_names=("post_attention_norm", "post_ffw_norm"), eps=1e-2, keys={
                 "attention.sliding_window": 8, "rope.freq_base_swa": 3000.0, **yarn}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("plamo3_pattern", "plamo3", n_layer=4, n_ff=64, qk_norm=True, sandwich=True, fused=True, freq_base=200000.0,
             post_names=("post_attention_norm", "post_ffw_norm"), keys={
                 "attention.sliding_window": 16, "attention.sliding_window_pattern": [True, False, True, True]},
             runs=[(512, 48, 1), SHIFTED]),
        Tiny("hunyuan_alpha", "hunyuan-dense", head_dim=32, qk_norm=True, keys={"rope.scaling.alpha": 50.0}),
        Tiny("hunyuan_vl", "hunyuan_vl", head_dim=32, qk_norm=True, tied=True, eps=1e-2, keys={
            "rope.dimension_sections": [4, 4, 4, 4], "rope.scaling.alpha": 50.0}, runs=[(512, 48, 1), (512, 300, 6)]),
        Tiny("hunyuan_vl_plain", "hunyuan_vl", n_layer=2, head_dim=16, qk_norm=True, runs=[(512, 48, 1), SHIFTED]),
        Tiny("phi3", "phi3", fused=True, n_rot=16),
        Tiny("phi3_longrope", "phi3", fused=True, n_rot=16, n_ctx=1024, tensors={
            "rope_factors_long.weight": ramp(8, 1.1, 40.0), "rope_factors_short.weight": ramp(8, 1.0, 3.0)},
            keys={"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.19},
            runs=[(256, 48, 1), (512, 48, 1), (512, 300, 6)]),
        Tiny("phi3_partial_tied", "phi3", fused=True, n_rot=12, tied=True, eps=1e-2, runs=[(512, 48, 1), SHIFTED]),
        Tiny("phimoe", "phimoe", bias=("q", "k", "v", "o", "output"), layer_norm="rms", n_ff=48, experts=(5, 2), eps=1e-2, n_rot=16,
             n_ctx=1024, tensors={"rope_factors_long.weight": ramp(8, 1.1, 40.0), "rope_factors_short.weight": ramp(8, 1.0, 3.0)},
             keys={"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.19},
             runs=[(256, 48, 1), (512, 48, 1)]),
        Tiny("apertus", "apertus", qk_norm=True, ungated=True, eps=1e-2, tensors={"rope_freqs.weight": ramp(8, 1.0, 8.0)}, keys={
            "xielu.alpha_n": [0.3, 0.8, -0.4], "xielu.alpha_p": [0.5, -0.2, 0.9], "xielu.beta": [0.5, 0.3, 0.7],
            "xielu.eps": [-1e-6, -1e-6, -1e-6]}, runs=[(512, 48, 1), SHIFTED]),
        Tiny("phi3_window_key", "phi3", fused=True, n_rot=16, keys={"attention.sliding_window": 8}),
    ]


def pack(out, logits, dest):
    for model in models():
        (dest / f"{model.name}.gguf.gz").write_bytes(
            gzip.compress((out / f"{model.name}.gguf").read_bytes(), 9, mtime=0))
        runs = []
        for r, line in enumerate((out / f"{model.name}.runs").read_text().splitlines()):
            line, _, shift = line.partition(" | ")
            n_ctx, *ids = map(int, line.split())
            table = np.fromfile(logits / f"{model.name}.{r}.f32", dtype=np.float32).reshape(len(ids), model.n_vocab)
            assert np.isfinite(table).all()
            if model.silent:
                # llama.cpp sees to it in the first row of a batch alone.
                assert (table[0, slice(*model.silent)] == LEAST).all()
                table[:, slice(*model.silent)] = LEAST
            every = model.runs[r][2]
            shift = dict(zip(("at", "n_keep", "n_discard"), map(int, shift.split()))) or None
            first = shift["at"] if shift else 0
            positions = [p for p in range(first, len(ids)) if p % every == every - 1]
            runs.append({
                "n_ctx": n_ctx,
                "ids": ids,
                **({"shift": shift} if shift else {}),
                "positions": positions,
                "logits": [[float(f"{x:.8g}") for x in table[p].tolist()] for p in positions],
            })
            kept = table[positions]
            kept = kept[kept > LEAST]
            print(f"{model.name:24} run {r}: logits std {kept.std():.2f}, range {kept.min():.1f}..{kept.max():.1f}")
        is_long = [len(run["ids"]) > LONG for run in runs]
        for suffix, long in (("", False), ("_long", True)):
            kept = [run for run, l in zip(runs, is_long) if l == long]
            text = json.dumps({"model": model.name, "runs": kept}, separators=(",", ":"))
            if kept:
                (dest / f"{model.name}{suffix}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "models":
        out = Path(sys.argv[2])
        out.mkdir(parents=True, exist_ok=True)
        for model in models():
            model.write(out / f"{model.name}.gguf")
            lines = []
            for n_ctx, n, _, *shift in model.runs:
                lines.append(" ".join(map(str, [n_ctx, *model.ids(n)] + (["|", *shift] if shift else []))))
            (out / f"{model.name}.runs").write_text("\n".join(lines) + "\n")
    elif len(sys.argv) == 5 and sys.argv[1] == "pack":
        pack(*map(Path, sys.argv[2:]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
