"""Completions: rows alone against rows together, members against dense models, draws against their probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core.population import per_group
from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm import rwkv7
from eggroll.llm.evolve import MATRICES, distribution_for
from eggroll.llm.generate import Completions, Sampling, choose, everyone, generate, log_probabilities
from tests.llm.models import TINY, noisy

PARAMS = jax.tree.map(jnp.asarray, noisy(TINY))
GREEDY = Sampling(9, (0, 3))
write = jax.jit(generate, static_argnames="how")
read = jax.jit(rwkv7.read, static_argnames="all_logits")


def filled(rows: list[list[int]], length: int) -> tuple[Any, Any]:
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        tokens[number, length - len(row) :], mask[number, length - len(row) :] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


ROWS = [[5, 6, 7], [9], [11, 30, 2, 8, 21, 22], [17, 17]]


def test_greedy_is_reading_again_and_again() -> None:
    done = write(PARAMS, *filled(ROWS, 7), jax.random.key(0), how=GREEDY)
    for number, row in enumerate(ROWS):
        text, written = list(row), []
        while len(written) < GREEDY.length and not (written and written[-1] in GREEDY.ends):
            tokens, mask = filled([text + written], 16)
            written.append(int(read(PARAMS, tokens, mask=mask)[0][0].argmax()))
        assert int(done.lengths[number]) == len(written)
        expected = written + [0] * (GREEDY.length - len(written))
        assert done.tokens[number].tolist() == expected
        assert bool(done.ended[number]) == (written[-1] in GREEDY.ends)


def test_rows_do_not_know_of_each_other() -> None:
    how = Sampling(6, samples=3, temperature=1.0)
    together = write(PARAMS, *filled(ROWS, 7), jax.random.key(1), how=how)
    keys = jax.random.split(jax.random.key(1), 12)
    assert len({tuple(row) for row in together.tokens.tolist()}) > 6  # draws differ
    again = write(PARAMS, *filled(ROWS, 7), jax.random.key(1), how=how)
    np.testing.assert_array_equal(together.tokens, again.tokens)
    wider = write(PARAMS, *filled(ROWS, 9), jax.random.key(1), how=how)  # more filling
    np.testing.assert_array_equal(together.tokens, wider.tokens)
    logits, _ = read(PARAMS, jnp.asarray([ROWS[1]]))
    first = choose(jnp.repeat(logits, 3, axis=0), keys[3:6], jnp.int32(0), how)
    assert together.tokens[3:6, 0].tolist() == first.tolist()


def test_members_write_as_their_dense_models_do() -> None:
    how = Sampling(8, (0, 3), samples=2, temperature=0.7)
    es = EvolutionStrategy(
        optax.sgd(0.1), population_size=8, sigma=0.05, distribution=distribution_for(PARAMS, 1), trainable=MATRICES,
        group_size=4, chunk_size=4,
    )  # fmt: skip
    tokens, mask = filled(ROWS, 6)

    def fitness(params: Any, key: Any, tokens: Any, mask: Any) -> tuple[Any, Completions]:
        return jnp.float32(0), generate(params, tokens, mask, key, how)

    state = es.init(PARAMS, 5)
    groups = (per_group(tokens.reshape(2, 2, -1)), per_group(mask.reshape(2, 2, -1)))
    found = es.evaluate(state, fitness, *groups, has_aux=True)[2].aux
    members = es.ask(state)
    for member in (0, 1, 5):
        group = member // 4
        part = slice(2 * group, 2 * group + 2)
        dense = es.perturbed(state, member)
        own = write(dense, tokens[part], mask[part], members.key[member], how=how)
        np.testing.assert_array_equal(found.tokens[member], own.tokens)
        np.testing.assert_array_equal(found.lengths[member], own.lengths)


def test_a_population_stops_when_all_have_ended() -> None:
    steps = []

    def loop(ends: Any) -> Any:
        def body(carry: Any) -> Any:
            step, _ = carry
            jax.debug.callback(lambda: steps.append(1))
            return step + 1, step + 1 >= ends

        return jax.lax.while_loop(lambda c: (c[0] < 50) & ~everyone(c[1]), body, (jnp.int32(0), jnp.zeros(3, bool)))[0]

    ends = jnp.arange(12).reshape(2, 2, 3)
    counts = jax.jit(jax.vmap(jax.vmap(loop)))(ends)
    jax.effects_barrier()
    assert counts.tolist() == [[11, 11], [11, 11]] or set(np.ravel(counts)) == {11}


def test_draws_follow_the_probabilities() -> None:
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(3), 20_000)
    rows = jnp.broadcast_to(logits, (len(keys), 4))
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (1.0, 0.3)):
        drawn = choose(rows, keys, jnp.int32(2), Sampling(1, temperature=temperature, top_p=top_p))
        shares = np.bincount(drawn, minlength=4) / len(keys)
        odds = np.exp(np.asarray(logits) / temperature)
        odds /= odds.sum()
        kept = np.cumsum(odds) - odds < top_p
        expected = np.where(kept, odds, 0) / odds[kept].sum()
        np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / len(keys) ** 0.5)
        assert (shares[~kept] == 0).all()


@pytest.mark.parametrize("spread", [0.0, 50.0])
def test_a_draw_is_always_a_token_with_a_chance(spread: float) -> None:
    logits = spread * jax.random.normal(jax.random.key(0), (512, 33))
    keys = jax.random.split(jax.random.key(1), 512)
    drawn = choose(logits, keys, jnp.int32(0), Sampling(1, temperature=1.0, top_p=0.9))
    odds = jax.nn.softmax(logits)[jnp.arange(512), drawn]
    assert float(odds.min()) > 0 and int(drawn.max()) < 33


def test_log_probabilities_are_those_of_reading() -> None:
    tokens, mask = filled(ROWS, 7)
    found = jax.jit(log_probabilities)(PARAMS, tokens, mask)
    row = jnp.asarray([ROWS[2]])
    logits, _ = read(PARAMS, row[:, :-1], all_logits=True)
    expected = jax.nn.log_softmax(logits)[0, jnp.arange(5), row[0, 1:]]
    np.testing.assert_allclose(found[2, 1:], expected, atol=1e-5)
