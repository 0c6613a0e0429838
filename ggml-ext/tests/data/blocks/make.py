#!/usr/bin/env python3
"""Makes the fixtures of the block types with the `gguf` package (PyPI; made with 0.19.0).

    python3 make.py model.gguf [more.gguf ...]

For every type T:
  T.bin.gz        blocks: the start of a tensor of each model that has the type, what the package quantises, and random ones
  T.f32.gz        the package's dequantisation of T.bin, as float32 bytes
  T.quantized.gz  the package's quantisation of input.f32, where the package can quantise
The models used were SmolLM2-135M-Instruct Q4_1 and gemma-3-270m Q4_K_M.
"""

import gzip
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader, quants
from gguf.constants import GGML_QUANT_SIZES

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(20240229)

# Type -> byte positions of the half-precision numbers of a block.
TYPES = {
    "F32": [], "F16": [], "BF16": [], "MXFP4": [], "Q8_K": [],
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ1_S": [0], "IQ1_M": [], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
    "TQ1_0": [52], "TQ2_0": [64], "Q1_0": [0], "Q2_0": [0], "NVFP4": [],
}
# Not (all) in the package: elements and bytes of a block, as in ggml.h and ggml-common.h.
SIZES = {"Q1_0": (128, 18), "Q2_0": (64, 18)}


def put(name, data):
    (HERE / name).write_bytes(gzip.compress(data, 9, mtime=0))


def make_input():
    """2048 numbers: Gaussian blocks of several sizes, and blocks that are hard to get right."""
    x = rng.standard_normal((64, 32)).astype(np.float32)
    x[0:24] *= 0.03
    x[24:32] *= np.float32(2.0) ** np.arange(-28, 4, 4).reshape(8, 1)  # scales that are subnormal or zero in half precision
    x[32:36] *= 1000
    x[36:40] = 0
    x[37] = 1.5
    x[38] = -1.5
    x[39, 7] = -3
    x[40] = np.arange(-16, 16) / 2  # ties of rounding
    x[41] = np.arange(16, -16, -1) / 2
    x[42] = np.tile([1, -1], 16)  # the largest magnitude twice, with both signs
    x[43] = np.tile([-1, 1], 16)
    x[44] = np.arange(32) * 8
    x[45] = abs(x[45])
    x[46] = -abs(x[46])
    x[47] *= 1e7  # scales that are infinite in half precision
    x[48:56] = np.round(x[48:56] * 4) / 4
    return x.reshape(-1)


def sizes(name):
    return SIZES[name] if name in SIZES else GGML_QUANT_SIZES[T[name]]


def random_blocks(name, n):
    size = sizes(name)[1]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in TYPES[name]:
        scale = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 4, n)).astype(np.float16)
        scale[:6] = [0, -0.0, np.inf, 6e-8, -65504, np.nan]  # 6e-8: the smallest subnormal
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(n, 2)
    if name == "NVFP4":  # every scale there is
        blocks = rng.integers(0, 256, (64, size), dtype=np.uint8)
        blocks[:, :4] = np.arange(256, dtype=np.uint8).reshape(64, 4)
    if name == "IQ1_M":  # four bits of the scale in each of the last four words
        scale = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 4, n)).astype(np.float16)
        scale[:6] = [0, -0.0, np.inf, 6e-8, -65504, np.nan]
        words = blocks[:, 48:].copy().view(np.uint16)
        bits = scale.view(np.uint16).reshape(n, 1) >> (4 * np.arange(4, dtype=np.uint16))
        blocks[:, 48:] = (words & 0x0FFF | (bits & 15) << 12).astype(np.uint16).view(np.uint8)
    return blocks.reshape(-1)


def dequantize(name, data):
    if name == "Q8_K":  # not in the package: single-precision scale, 256 codes, 16 sums
        blocks = data.reshape(-1, 292)
        d = blocks[:, :4].copy().view(np.float32)
        return d * blocks[:, 4:260].copy().view(np.int8).astype(np.float32)
    if name in SIZES:  # not in the package: half-precision scale, codes of one or two bits, the first lowest
        blocks = data.reshape(-1, 18)
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32)
        if name == "Q1_0":
            return d * (2 * bits - 1)
        return d * (bits[:, 0::2] + 2 * bits[:, 1::2] - 1)
    return quants.dequantize(data, T[name])


def quantize(name, x):
    """The package's blocks; those of Q1_0, Q2_0 and NVFP4 as ggml-quants.c describes them: mean magnitude and signs; rounded to the
    largest; the scale (by the package) from the largest of 16, the nearest codes."""
    if name == "NVFP4":
        sixteens = x.reshape(-1, 16)
        scales = quants.NVFP4.fp32_to_ue4m3(abs(sixteens).max(axis=1) / np.float32(6))
        levels = np.array(quants.NVFP4.kvalues, np.float32) * quants.NVFP4.ue4m3_to_fp32(scales).astype(np.float32).reshape(-1, 1)
        codes = abs(levels[:, None, :] - sixteens[:, :, None]).argmin(axis=2).astype(np.uint8)  # the first of equals
        packed = (codes[:, :8] | codes[:, 8:] << 4).reshape(-1, 32)
        return np.concatenate([scales.astype(np.uint8).reshape(-1, 4), packed], axis=1).reshape(-1)
    if name not in SIZES:
        return np.ascontiguousarray(quants.quantize(x.copy(), T[name])).view(np.uint8).reshape(-1)
    blocks = x.reshape(-1, SIZES[name][0])
    if name == "Q1_0":
        d = np.zeros(len(blocks), np.float32)
        for column in blocks.T:  # one after the other, in single precision
            d += abs(column)
        d /= np.float32(128)
        bits = (blocks >= 0).astype(np.uint8)
    else:
        d = abs(blocks).max(axis=1)
        scaled = blocks * np.where(d > 0, np.float32(1) / d, 0).reshape(-1, 1)
        codes = (np.where(abs(scaled) >= 0.5, np.sign(scaled), 0) + 1).astype(np.uint8)
        bits = np.stack([codes & 1, codes >> 1], axis=2).reshape(len(blocks), -1)
    packed = np.packbits(bits, axis=1, bitorder="little")
    return np.concatenate([d.astype(np.float16).view(np.uint8).reshape(-1, 2), packed], axis=1).reshape(-1)


def main():
    models = [GGUFReader(path) for path in sys.argv[1:]]
    x = make_input()
    put("input.f32.gz", x.tobytes())
    for name in TYPES:
        block_len, size = sizes(name)
        n = 1024 // block_len
        parts = []
        for model in models:
            for tensor in [t for t in model.tensors if t.tensor_type.name == name][:2]:
                parts.append(np.asarray(tensor.data).view(np.uint8).reshape(-1)[: n * size // 2].copy())
        real = len(parts)
        try:
            q = quantize(name, x)
            put(f"{name}.quantized.gz", q.tobytes())
            parts.append(q)
        except NotImplementedError:
            q = None
        parts.append(random_blocks(name, max(n, 16)))
        data = np.concatenate(parts)
        put(f"{name}.bin.gz", data.tobytes())
        put(f"{name}.f32.gz", dequantize(name, data).astype(np.float32).tobytes())
        print(name, f"{real} real tensors, quantised: {q is not None}, {data.size} bytes")


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
