"""Train an unmodified Flax Transformer to add modulo P, by the order of its answers.

Fitness is minus the mean number of wrong answers that rank above the right sum: zero is perfect, and accuracy counts
the pairs where it is zero. Like accuracy it is a count and has no gradient, but it also rewards an answer that climbs
from fifth to second: on accuracy alone, three settings near this one stopped at 63 to 73 % (seed 0), where this one
reaches 94, 100 and 94 % (seeds 0, 1, 2). No probability is looked at.

The kernels of multi-head attention have three axes, and so one says which of them are the rows of a matrix: (features,
heads, head_dim) of query, key and value have one, (heads, head_dim, features) of the way out has two. Biases of shape
(heads, head_dim) and the two places are no matrices: split 0 gives them elementwise noise.

Training sees all P² pairs: this is memorising. (With a fifth held out, and accuracy or log-likelihood as fitness,
at most one of nine unseen pairs was right.) Prints the accuracy before and after. About 30 seconds of one core.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import eggroll

P, WIDTH, HEADS = 7, 32, 4


class Adder(nn.Module):
    """Logits (pairs, P) of the sum, from the two numbers (pairs, 2)."""

    @nn.compact
    def __call__(self, numbers):
        place = self.param("place", nn.initializers.normal(1.0), (2, WIDTH))
        x = nn.Embed(P, WIDTH, embedding_init=nn.initializers.normal(1.0))(numbers) + place[None]
        x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(P)(nn.LayerNorm()(x[:, -1]))


SPLIT = {
    "*/out/kernel": 2,
    **{f"*/{name}/kernel": 1 for name in ("query", "key", "value")},
    **{f"*/{name}/bias": 0 for name in ("query", "key", "value")},
    "*/place": 0,
}

model = Adder()


def rank_of_right(params, key, numbers, right):
    """Fitness of ONE member: minus the mean number of answers above the right one."""
    logits = model.apply(params, numbers)
    return -jnp.mean(jnp.sum(logits > jnp.take_along_axis(logits, right[:, None], axis=1), axis=1))


@jax.jit
def accuracy(params, numbers, right):
    return jnp.mean(jnp.argmax(model.apply(params, numbers), axis=1) == right)


def train(generations=150, population_size=512, seed=0, law="popcount"):
    """Accuracy over all pairs at the start and at the end."""
    numbers = jnp.stack(jnp.unravel_index(jnp.arange(P * P), (P, P)), axis=1)
    right = numbers.sum(axis=1) % P
    es = eggroll.EvolutionStrategy(
        optax.adam(optax.cosine_decay_schedule(0.15, generations)),
        population_size=population_size,
        sigma=0.1,
        distribution=eggroll.LowRank(law=law, split=SPLIT),
    )
    state = es.init(model.init(jax.random.key(seed), numbers), seed=seed)
    start = float(accuracy(state.params, numbers, right))
    for _ in range(generations):
        state, _ = es.step(state, rank_of_right, numbers, right)
    return start, float(accuracy(state.params, numbers, right))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=150, help="updates")
    parser.add_argument("--population-size", type=int, default=512, help="members, even")
    parser.add_argument("--seed", type=int, default=0, help="of start and noise")
    args = parser.parse_args()
    start, end = train(args.generations, args.population_size, args.seed)
    print(f"accuracy {start:.3f} at the start, {end:.3f} after {args.generations} generations")


if __name__ == "__main__":
    main()
