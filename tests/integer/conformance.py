"""Reads ../shared/data/egg/conformance.npz into this project's names."""

import jax
import numpy as np

from eggroll.core.noise import threefry2x32

NAMES = {
    "embedding": "emb",
    "head": "head",
    "norm_out": "ln_out/weight",
    "blocks/norm1": "blocks/ln1/weight",
    "blocks/norm2": "blocks/ln2/weight",
    "blocks/W1": "blocks/mlp/0/weight",
    "blocks/W2": "blocks/mlp/1/weight",
} | {f"blocks/{name}": f"blocks/att/{name}" for name in ("Wf", "Uf", "Wh", "Uh", "bf", "bh")}


def load(shared):
    with np.load(shared / "data/egg/conformance.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def parameters(data, prefix):
    return {ours: data[f"{prefix}/{theirs}"] for ours, theirs in NAMES.items()}


def noise(data, case):
    """Flat noise with the member's sign in A and in the products, as `oracle.forward` takes it (rank 1)."""
    out = {}
    for ours, theirs in NAMES.items():
        leaf = f"noise/{case}/{theirs}"
        out[ours] = (
            (data[f"{leaf}/A"][..., None], data[f"{leaf}/B"][..., None]) if f"{leaf}/A" in data else data[f"{leaf}/E"]
        )
    return out


def public_pool(index):
    """Entries of the public code's pool of 2³⁰ numbers: ⌊16·N(0, 1)⌉ towards 0 of `jax.random.key(0)`."""
    counter = np.asarray(index, np.uint32).view(np.int32)
    zero = counter ^ counter
    words = threefry2x32((zero, zero), (zero, counter), rounds=20)
    unit = (((words[0] ^ words[1]).view(np.uint32) >> 9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = np.maximum(low, unit * (np.float32(1) - low) + low)
    normal = np.float32(np.sqrt(2)) * np.asarray(jax.lax.erf_inv(uniform))
    return np.trunc(normal * np.float32(16)).astype(np.int8)


def public_sum(data, ours, fitness):
    """`Z` of one leaf from the public noise of pairs 0…3: the pool's slices start at key ^ pair·0x45d9f3b mod 2³⁰."""
    theirs = NAMES[ours]
    shape = data[f"g/params/{theirs}"].shape
    starts = np.atleast_1d(data[f"noise/e3t4/{theirs}/start_idx"]).astype(np.int64)
    stacked = shape if starts.shape == (2,) else (1, *shape)
    layers = []
    for start, size in zip(starts, [stacked[1:]] * len(starts), strict=True):
        z = np.zeros(size, np.int64)
        for pair, f in enumerate(fitness):
            at = (start ^ (2 * 0x45D9F3B) ^ (pair * 0x45D9F3B)) % 2**30
            if len(size) == 2:
                draws = public_pool(at + np.arange(sum(size))).astype(np.int64)
                z += f * np.outer(draws[size[1] :], draws[: size[1]])
            else:
                z += f * public_pool(at + np.arange(2 * size[0])).astype(np.int64).reshape(-1, 2).prod(1)
        layers.append(z)
    return np.stack(layers).reshape(shape)
