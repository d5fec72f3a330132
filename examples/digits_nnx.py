"""Train an unmodified Flax NNX classifier on handwritten digits by its accuracy, which has no gradient.

`nnx.split` takes the module apart into a graph and its state, a pytree that the strategy perturbs; inside the fitness
`nnx.merge` puts each member together again. The data are scikit-learn's 8×8 digits, 1400 to train on and 397 held
out. A generation's population is cut into groups with a minibatch each: `eggroll.per_group` gives a group's members
their own digits, the shaping "group_z_score" compares members with those who saw the same, and so a generation reads
many digits while each member reads few.

Prints the held-out accuracy before and after. About 15 seconds of one core.
"""

import argparse

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import eggroll

TRAIN, BATCH, GROUPS = 1400, 128, 16


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def digits(seed):
    """Images (1797, 64) less the training mean, in [-2, 2], and labels (1797,), shuffled."""
    image, label = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(label))
    return ((image - image[order[:TRAIN]].mean(0)) / 8).astype(np.float32)[order], label[order]


def train(generations=150, population_size=1024, seed=0, law="popcount"):
    """Held-out accuracy at the start and at the end."""
    image, label = digits(seed)
    graph, params = nnx.split(Classifier(nnx.Rngs(seed)))

    def accuracy(params, key, x, y):  # ONE member; a count of right answers: no gradient anywhere
        return jnp.mean(jnp.argmax(nnx.merge(graph, params)(x), axis=1) == y)

    es = eggroll.EvolutionStrategy(
        optax.adam(optax.cosine_decay_schedule(0.05, generations)),
        population_size=population_size,
        sigma=0.2,
        law=law,
        group_size=population_size // GROUPS,
        shaping="group_z_score",
    )
    state = es.init(params, seed=seed)
    test = jax.jit(lambda params: accuracy(params, None, image[TRAIN:], label[TRAIN:]))
    start = float(test(state.params))
    draw = np.random.default_rng(seed)
    for _ in range(generations):
        batch = draw.integers(0, TRAIN, (GROUPS, BATCH))
        state, _ = es.step(state, accuracy, eggroll.per_group(image[batch]), eggroll.per_group(label[batch]))
    return start, float(test(state.params))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=150, help="updates")
    parser.add_argument("--population-size", type=int, default=1024, help="members, a multiple of 32")
    parser.add_argument("--seed", type=int, default=0, help="of data order, start and noise")
    args = parser.parse_args()
    start, end = train(args.generations, args.population_size, args.seed)
    print(f"held-out accuracy {start:.3f} at the start, {end:.3f} after {args.generations} generations")


if __name__ == "__main__":
    main()
