"""The integer model written out again in NumPy int64, one member at a time, straight from the specification."""

import itertools

import numpy as np


def sat(v):
    return np.clip(v, -127, 127)


def mm(x, w, a, b, shift, s=4):
    """x (in,), w (out, in), a (out, r), b (in, r) with the member's sign in `a`."""
    x, w, a, b = (np.asarray(v, np.int64) for v in (x, w, a, b))
    r = a.shape[1]
    limit = (2**31 - 1) // (127 * r)
    c = np.clip(x @ b, -limit, limit)
    return sat((x @ w.T + ((c @ a.T) >> shift)) // (16 * int(np.sqrt(len(x)))))


def norm(x, w):
    m = max(np.abs(x).sum() // len(x), 1)
    return sat((x * w) // m)


def exp2(z):
    return np.array([int(16 * 2 ** (i / 16)) for i in range(256)])[z]


def log_likelihood(logits, target):
    z = logits + 128
    return z[target] - int(16 * np.log2(exp2(z).sum() / 16))


def forward(p, n, tokens, state, sign=1, sigma_shift=4, rank=1):
    """All steps of one member. `p` and `n` are flat: n[path] = (A (…, out, r), B (…, in, r)) or products (…, width).

    Returns per-step logits, log-likelihoods and states (T, layers, width).
    """
    shift = 4 + sigma_shift + {1: 0, 4: 1, 16: 2}[rank]
    layers = state.shape[0]
    state = state.astype(np.int64)

    def vec(path, at=()):
        return sat(p[path][at].astype(np.int64) + ((sign * n[path][at].astype(np.int64)) >> (4 + sigma_shift)))

    def mat(x, path, at=()):
        return mm(x, p[path][at], sign * n[path][0][at].astype(np.int64), n[path][1][at], shift)

    out = [], [], []
    for t, target in itertools.pairwise(tokens):
        if t == 0:
            state = np.zeros_like(state)
        a, b = (v.astype(np.int64) for v in n["embedding"])
        x = sat(p["embedding"][t].astype(np.int64) + ((sign * (b @ a[t])) >> shift))
        for i in range(layers):
            u, h = norm(x, vec("blocks/norm1", i)), state[i]
            f = sat(mat(u, "blocks/Wf", i) + mat(h, "blocks/Uf", i) + vec("blocks/bf", i))
            g = ((f + 127) * h) >> 8
            c = sat(mat(u, "blocks/Wh", i) + mat(g, "blocks/Uh", i) + vec("blocks/bh", i))
            state[i] = h + (((f + 127) * (c - h)) >> 8)
            x = sat(x + state[i])
            hidden = mat(norm(x, vec("blocks/norm2", i)), "blocks/W1", i)
            x = sat(x + mat(hidden, "blocks/W2", i))
        logits = mat(norm(x, vec("norm_out")), "head")
        for values, value in zip(out, (logits, log_likelihood(logits, target), state.copy()), strict=True):
            values.append(value)
    return tuple(np.array(v) for v in out)
