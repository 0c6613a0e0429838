#!/usr/bin/env python3
"""Losses and gradients of both stages of distillation by automatic differentiation (JAX, F32), for tests/distill.rs.

    pip install "jax[cpu]" optax gguf numpy tokenizers
    make.py lisa_ref.py          the prototype of the method, an implementation that shares no code with this one

Writes `gradients.json.gz`: for each case token ids, the loss per position, and the gradient of every tensor in the file's order.
"""
import gzip, importlib.util, json, pathlib, shutil, sys, tempfile
import gguf, jax, jax.numpy as jnp, numpy as np

here = pathlib.Path(__file__).parent
spec = importlib.util.spec_from_file_location("ref", sys.argv[1])
ref = importlib.util.module_from_spec(spec); spec.loader.exec_module(ref)


def unpacked(path, folder):
    out = pathlib.Path(folder) / path.stem
    with gzip.open(path) as i, open(out, "wb") as o:
        shutil.copyfileobj(i, o)
    return out


def load(path):
    """As the prototype's `load`, which wants a BPE vocabulary besides."""
    r = gguf.GGUFReader(path)
    val = lambda k: r.fields[f"llama.{k}"].parts[r.fields[f"llama.{k}"].data[0]][0]
    c = dict(L=int(val("block_count")), D=int(val("embedding_length")), H=int(val("attention.head_count")),
             KV=int(val("attention.head_count_kv")), eps=float(val("attention.layer_norm_rms_epsilon")), base=float(val("rope.freq_base")))
    c["hd"] = c["D"] // c["H"]
    t = {x.name: jnp.asarray(np.asarray(x.data, np.float32).reshape([int(n) for n in reversed(x.shape)])) for x in r.tensors}
    blk = [{s: t[f"blk.{i}.{n}.weight"] for s, n in ref.NAMES.items()} for i in range(c["L"])]
    return c, dict(emb=t["token_embd.weight"], norm=t["output_norm.weight"], out=t.get("output.weight", t["token_embd.weight"]), blk=blk)


def flat(x):
    return [float(f"{v:.6e}") for v in np.asarray(x, np.float32).reshape(-1)]


def main():
    cases = []
    for base, sidecar in [("families/llama", "sharing/llama_gqa"), ("families/llama", "sharing/linear")]:
        with tempfile.TemporaryDirectory() as folder:
            c, P = load(unpacked(here.parent / f"{base}.gguf.gz", folder))
            lisa = ref.read(unpacked(here.parent / f"{sidecar}.lisa.gguf.gz", folder), c)
        n_vocab = P["emb"].shape[0]
        ids = np.array([[(i * i * 7 + 3 * i + 5) % n_vocab for i in range(40)]])
        lt = ref.logprobs(P, ref.forward(c, P, ids))

        def end_to_end(li):
            return (jnp.exp(lt) * (lt - ref.logprobs(P, ref.forward(c, P, ids, li)))).sum(-1).mean()

        def attention(li):
            return ref.attention_loss(c, li, ref.forward(c, P, ids, collect=True)[1])

        case = dict(base=base, sidecar=sidecar, ids=ids[0].tolist())
        for name, f in [("end-to-end", end_to_end), ("attention", attention)]:
            loss, grads = jax.value_and_grad(f)(lisa)
            tensors = {f"blk.{l}.{k}": flat(v) for l, p in grads.items() for k, v in p.items() if k != "freq"}
            case[name] = dict(loss=float(loss), gradients=tensors)
        cases.append(case)
    with gzip.GzipFile(here / "gradients.json.gz", "wb", mtime=0) as f:
        f.write(json.dumps(cases).encode())


if __name__ == "__main__":
    main()
