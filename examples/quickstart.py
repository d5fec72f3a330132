"""Train an unmodified Flax classifier on its accuracy, which has no gradient. About 20 seconds on two cores."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import eggroll


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(32)(x)))


def spirals(key, points):
    """Three interleaved arms in the plane: inputs (points, 2), labels (points,)."""
    label_key, radius_key, noise_key = jax.random.split(key, 3)
    label = jax.random.randint(label_key, (points,), 0, 3)
    radius = jax.random.uniform(radius_key, (points,), minval=0.1)
    angle = 4 * radius + label * (2 * jnp.pi / 3) + 0.1 * jax.random.normal(noise_key, (points,))
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1), label


model = Classifier()


def accuracy(params, key, x, label):
    return jnp.mean(jnp.argmax(model.apply(params, x), axis=1) == label)


def main(generations=150):
    x, label = spirals(jax.random.key(0), 512)
    es = eggroll.EvolutionStrategy(optax.adam(0.05), population_size=512, sigma=0.1, rank=1)
    state = es.init(model.init(jax.random.key(1), x), seed=0)
    start = float(accuracy(state.params, None, x, label))
    for generation in range(generations):
        state, info = es.step(state, accuracy, x, label)
        if generation % 25 == 0:
            print(f"generation {generation:3d}: mean accuracy of the population {float(info.fitness_mean):.3f}")
    end = float(accuracy(state.params, None, x, label))
    print(f"accuracy {start:.3f} at the start, {end:.3f} after {generations} generations")
    return start, end


if __name__ == "__main__":
    main()
