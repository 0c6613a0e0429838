#!/usr/bin/env python3
"""Writes `grids.bin`, the points of the lattice types, as the `gguf` package (PyPI; 0.19.0) has them.

A point is a 16-bit number, little-endian: element `i` of eight at bit `2 * i`, of four at bit `4 * i`, as the index of its level. The
grids follow each other in the order of the list below.
"""

import pathlib

import numpy as np
from gguf import quants

GRIDS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ3_XXS", "IQ3_S"]


def points(name):
    kind = getattr(quants, name)
    kind.init_grid()
    grid = np.asarray(kind.grid).reshape(kind.grid_shape).astype(int)
    levels = np.searchsorted(kind.grid_map, grid)
    width = 16 // grid.shape[1]
    keys = (levels << (width * np.arange(grid.shape[1]))).sum(axis=1)
    assert (np.diff(keys) > 0).all(), "points are looked up by halving"
    return keys.astype("<u2")


def main():
    grids = [points(name) for name in GRIDS]
    pathlib.Path(__file__).with_name("grids.bin").write_bytes(b"".join(g.tobytes() for g in grids))
    print({name: len(grid) for name, grid in zip(GRIDS, grids)})


if __name__ == "__main__":
    main()
