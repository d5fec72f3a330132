"""Bit for bit the public int8 implementation, on its own stored parameters, noise and inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.integer import arithmetic, model, update
from tests.integer import conformance, oracle

CONFIG = model.Config(layers=2, width=64)


FORWARD = jax.jit(functools.partial(model.forward, config=CONFIG))


@jax.jit
def LOGITS(parameters, factors, tokens, state):  # noqa: N802
    x, state = model.hidden_forward(parameters, factors, CONFIG, tokens, state)
    return model.logits_of(parameters, factors, CONFIG, x), state


@pytest.fixture(scope="module")
def data(shared):
    return conformance.load(shared)


def chunk(noise, sign):
    """Noise of one member as a chunk of one pair whose sign `sign` member it is."""
    leaves = {}
    for path, leaf in noise.items():
        if isinstance(leaf, tuple):
            a, b = (np.moveaxis(side, -1, -2)[..., None, :, :].astype(np.int8) for side in leaf)
            leaves[path] = arithmetic.Factors(jnp.asarray(a * np.int8(sign)), jnp.asarray(b))
        else:
            leaves[path] = jnp.asarray(leaf[..., None, :].astype(np.int32) * sign)
    return model.nested(leaves)


@pytest.mark.parametrize("start", ["g", "u"])
@pytest.mark.parametrize(("case", "sign"), [("none", 1), ("e3t5", -1), ("e3t4", 1)])
def test_forward_equals_public_code(data, start, case, sign):
    perturbed = case != "none"
    parameters = model.nested(conformance.parameters(data, f"{start}/params"))
    factors = chunk(conformance.noise(data, case), sign) if perturbed else None
    tokens = jnp.asarray(data["seq65"])[:, None]
    state = model.zero_state(CONFIG, 2 if perturbed else 1, 1)
    member = 0 if sign == 1 else 1
    as_jax = model.nested(model.parameter_leaves(parameters))
    logits, final = LOGITS(as_jax, factors, tokens[:-1], state)
    logits = logits[:, member, 0]
    total, final_too = FORWARD(as_jax, factors, tokens=tokens, state=state)
    expected = {name: data[f"{start}/{case}/{name}"] for name in ("logits", "ll", "final_state", "ll_sum")}
    np.testing.assert_array_equal(logits, expected["logits"])
    np.testing.assert_array_equal(final[:, member, 0], expected["final_state"])
    np.testing.assert_array_equal(final_too, final)
    assert int(total[member, 0]) == int(expected["ll_sum"])
    steps = arithmetic.log_likelihood(logits, tokens[1:, 0])
    np.testing.assert_array_equal(steps, expected["ll"])


@pytest.mark.parametrize("start", ["g", "u"])
@pytest.mark.parametrize("case", ["e3t5", "e3t4"])
def test_the_oracle_equals_public_code(data, start, case):
    """The oracle that the other tests lean on is itself held to the public implementation."""
    logits, likelihood, states = oracle.forward(
        conformance.parameters(data, f"{start}/params"),
        conformance.noise(data, case),
        data["seq65"],
        np.zeros((2, 64)),
    )
    for name, ours in (("logits", logits), ("ll", likelihood), ("states", states)):
        np.testing.assert_array_equal(ours, data[f"{start}/{case}/{name}"])


@pytest.mark.parametrize("start", ["g", "u"])
def test_sum_of_exponentials(data, start):
    logits = jnp.asarray(data[f"{start}/e3t5/logits"].astype(np.int32))
    np.testing.assert_array_equal(jnp.sum(arithmetic.exp2(logits + 128), axis=-1), data[f"{start}/e3t5/sumexp"])


def test_division_table(data):
    """Row m of the stored table is int16 n (as uint16) to sat(n // m): every numerator that normalisation can meet."""
    table = data["div/rows0_127"].astype(np.int32)
    x, scale = np.meshgrid(np.arange(-127, 128), np.arange(-127, 128))
    x, scale = x.ravel().astype(np.int32), scale.ravel().astype(np.int32)
    divide = jax.jit(arithmetic.floor_divide)
    for m in range(1, 128):
        got = divide(jnp.asarray(x * scale), jnp.int32(m))
        np.testing.assert_array_equal(got, table[m][(x * scale) & 0xFFFF])


def test_public_pool_is_rebuilt(data):
    np.testing.assert_array_equal(conformance.public_pool(np.arange(4096)), data["pool/head4096"])
    np.testing.assert_array_equal(conformance.public_pool(2**30 - 4096 + np.arange(4096)), data["pool/tail4096"])


@pytest.mark.parametrize("alpha", ["1.0", "0.3"])
def test_update_equals_public_code(data, alpha):
    """Where Z ≠ 0: at threshold 0 the public code moves Z = 0 by −1, ours does not (specification)."""
    before = conformance.parameters(data, "g/params")
    after = conformance.parameters(data, f"upd/a{alpha}/params")
    tau = int(data[f"upd/a{alpha}/threshold"])
    level = update.threshold(float(alpha), 4)
    assert level == tau * 2 * 256
    for path, value in before.items():
        z = conformance.public_sum(data, path, data["upd/fitness"])
        new = update.apply_threshold(jnp.asarray(value), jnp.asarray(z, jnp.int32), jnp.int32(level))
        np.testing.assert_array_equal(np.asarray(new)[z != 0], after[path][z != 0])
        np.testing.assert_array_equal(np.asarray(new)[z == 0], value[z == 0])
