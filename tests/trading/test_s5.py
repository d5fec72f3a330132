"""State spaces: scan, step and a direct recurrence in complex128 agree; HiPPO is diagonalised as it is defined."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.trading import s5

WIDTH, STATE, PAIRS = 8, 12, 6
init_ssm = jax.jit(s5.init_ssm, static_argnums=(1, 2))


@functools.cache
def system(seed):
    return init_ssm(jax.random.key(seed), WIDTH, STATE)


def inputs(seed, time, scale=1.0):
    """A sequence and a start state that is not zero."""
    keys = jax.random.split(jax.random.key(seed))
    return scale * jax.random.normal(keys[0], (2, PAIRS)), scale * jax.random.normal(keys[1], (time, WIDTH))


def direct(params, state, sequence):
    """The recurrence as it is defined, in complex128."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    eigenvalues, step = -np.exp(p["log_decay"]) + 1j * p["frequency"], np.exp(p["log_step"])
    decay = np.exp(eigenvalues * step)
    hold = (decay - 1) / eigenvalues
    x, outputs = state[0] + 1j * np.asarray(state[1], np.float64), []
    for u in np.asarray(sequence, np.float64):
        x = decay * x + hold * (u @ (p["input_real"] + 1j * p["input_imag"]))
        outputs.append(2 * (x @ (p["output_real"] + 1j * p["output_imag"])).real + p["skip"] * u)
    return np.stack([x.real, x.imag]), np.array(outputs)


def stepped(params, state, sequence):
    return jax.lax.scan(functools.partial(s5.ssm_step, s5.discretised(params)), state, sequence)


scan, loop = jax.jit(s5.ssm_scan), jax.jit(stepped)


def assert_near(found, expected, within=1e-5):
    """To a share of the largest number."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=within * max(1, abs(np.asarray(other)).max()))


@pytest.mark.parametrize("time", [1, 2, 32, 33, 101])
def test_scan_step_and_the_direct_recurrence_agree(time):
    for seed in range(3):
        state, sequence = inputs(seed, time)
        by_scan, by_step = scan(system(seed), state, sequence), loop(system(seed), state, sequence)
        assert_near(by_scan, direct(system(seed), state, sequence))
        assert_near(by_scan, by_step, 2e-6)


@pytest.mark.parametrize("cut", [1, 7, 39])
def test_pieces_of_a_sequence_are_the_whole(cut):
    params, (state, sequence) = system(cut), inputs(cut, 40)
    middle, first = scan(params, state, sequence[:cut])
    end, second = scan(params, middle, sequence[cut:])
    assert_near((end, jnp.concatenate([first, second])), scan(params, state, sequence))


def test_scan_and_step_have_the_same_gradients():
    state, sequence = inputs(0, 37)

    def loss(apply, params, state, sequence):
        end, outputs = apply(params, state, sequence)
        return jnp.square(outputs).mean() + end.sum()

    one, other = (
        jax.jit(jax.grad(functools.partial(loss, f), (0, 1, 2)))(system(0), state, sequence) for f in (scan, loop)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert a.any()


def test_a_batch_is_its_sequences():
    batch = [inputs(seed, 19) for seed in range(3)]
    states, sequences = (jnp.stack(parts) for parts in zip(*batch, strict=True))
    found = jax.jit(jax.vmap(s5.ssm_scan, (None, 0, 0)))(system(0), states, sequences)
    for k, one in enumerate(batch):
        assert_near([part[k] for part in found], scan(system(0), *one))


@pytest.mark.parametrize("state", [2, 12, 64])
def test_hippo_is_the_normal_part_of_legs(state):
    n = np.arange(state)
    legs = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
    normal = legs + np.outer(np.sqrt(n + 0.5), np.sqrt(n + 0.5))
    eigenvalues, vectors = s5.hippo(state)
    half = (vectors * eigenvalues) @ vectors.conj().T
    np.testing.assert_allclose(half + half.conj(), normal, atol=1e-10 * state**2)
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(state // 2), atol=1e-12)
    assert (eigenvalues.imag > 0).all() and (vectors[0].real > 0).all() and abs(vectors[0].imag).max() < 1e-12


def test_a_new_system_starts_as_documented():
    params = init_ssm(jax.random.key(1), 40, 64)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert ((params["log_step"] >= np.log(1e-3)) & (params["log_step"] <= np.log(1e-1))).all()
    eigenvalues, vectors = s5.hippo(64)
    np.testing.assert_allclose(-np.exp(params["log_decay"]) + 1j * params["frequency"], eigenvalues, rtol=1e-6)
    b = np.asarray(params["input_real"]) + 1j * np.asarray(params["input_imag"])
    real = 2 * (b @ vectors.T).real  # back from the eigenvectors: B itself, which is real
    np.testing.assert_allclose(real @ vectors.conj(), b, atol=1e-5)
    assert abs(real.std() * np.sqrt(40) - 1) < 0.1
    sizes = np.square(params["output_real"]) + np.square(params["output_imag"])
    assert abs(sizes.sum() / (40 * 64) * 64 - 1) < 0.2


def test_a_short_step_keeps_its_precision():
    params = {**system(0), "log_step": jnp.full(PAIRS, np.log(1e-6), jnp.float32)}
    found = s5.discretised(params).hold
    step = np.exp(np.float64(params["log_step"][0]))
    eigenvalues = -np.exp(np.float64(params["log_decay"])) + 1j * np.float64(params["frequency"])
    hold = np.expm1(eigenvalues * step) / eigenvalues
    np.testing.assert_allclose(found[:PAIRS] + 1j * np.asarray(found[PAIRS:]), hold, rtol=1e-6)


@given(st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3))
@settings(deadline=None, max_examples=30)
def test_no_parameters_make_it_grow(values):
    """A trained system stays stable: every state decays, to rounding."""
    names = ("log_decay", "frequency", "log_step")
    params = {**system(0), **{name: jnp.full(PAIRS, value) for name, value in zip(names, values, strict=True)}}
    assert (jnp.hypot(*jnp.split(s5.discretised(params).decay, 2)) <= 1 + 1e-6).all()


def test_a_discretised_system_stays_so():
    once = s5.discretised(system(0))
    assert s5.discretised(once) is once
    assert_near(scan(once, *inputs(0, 9)), scan(system(0), *inputs(0, 9)), 1e-6)


def test_a_layer_is_norm_system_gate_and_residual():
    layer = jax.jit(s5.init_layer, static_argnums=(1, 2))(jax.random.key(3), WIDTH, STATE)
    keys = jax.random.split(jax.random.key(4), 4)
    for (group, name), key in zip((("norm", "scale"), ("norm", "bias"), ("gate", "bias")), keys, strict=False):
        layer[group][name] = jax.random.normal(key, (WIDTH,))
    state, sequence = inputs(5, 21)
    x = np.asarray(sequence, np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + s5.NORM_EPS)
    normed = normed * np.asarray(layer["norm"]["scale"]) + np.asarray(layer["norm"]["bias"])
    end, y = direct(layer["ssm"], state, normed)
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    gate = y @ np.asarray(layer["gate"]["kernel"]) + np.asarray(layer["gate"]["bias"])
    expected = end, x + y / (1 + np.exp(-gate))
    assert_near(jax.jit(s5.layer_scan)(layer, state, sequence), expected)
    assert_near(jax.lax.scan(functools.partial(s5.layer_step, layer), state, sequence), expected)
