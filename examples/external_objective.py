"""Train a controller with `ask` and `tell`, its fitness measured by plain Python in other processes that have no JAX.

The objective is a simulator that JAX could not trace: a pole on a cart, one Python step after another, over as soon as
the pole falls. A process pool runs it. Only integers travel to the workers (`es.ask` gives them) beside the shared
mean: what a member's parameters are, each worker works out for itself with `eggroll.core.noise`, which is NumPy alone.
So a worker could as well be another machine, or another language. Fitnesses come back in the order of `ask`.

Prints the steps that the mean controller balances before and after, of at most 500, from starts that training did not
see. About 45 seconds of one core.
"""

import argparse
import itertools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from eggroll.core import noise

HIDDEN, EPISODES, LIMIT, SIGMA = 8, 4, 500, 0.1
SHAPES = {"first": (HIDDEN, 4), "bias": (HIDDEN,), "second": (1, HIDDEN)}


def draw(path, factor, shape, *, seed, generation, pair):
    """Unit-variance noise of one factor of one leaf; `seed` is two words, as in `Members`."""
    which = {"leaf": noise.leaf_id(path), "factor": factor, "generation": generation}
    key = noise.stream_key(seed=seed, pair=np.array([pair], np.int32), **which)
    bits = noise.element_bits(key, np.arange(math.prod(shape), dtype=np.int32))
    return noise.to_float(np, noise.law("popcount"), bits).reshape(shape)


def member_params(mean, *, sign, **which):
    """One member's parameters from integers, without JAX: rank 1 for matrices, elementwise noise for the rest."""
    moved = {}
    for path, value in mean.items():
        if value.ndim == 2:
            a, b = (
                draw(path, factor, (size, 1), **which)
                for factor, size in zip((noise.FACTOR_A, noise.FACTOR_B), value.shape, strict=True)
            )
            direction = a @ b.T
        else:
            direction = draw(path, noise.FACTOR_DENSE, value.shape, **which)
        moved[path] = value + np.float32(sign * SIGMA) * direction
    return moved


def balance(params, start):
    """Steps until the pole falls or the cart leaves the track; Barto, Sutton and Anderson (1983), Euler's method."""
    first, bias, second = (params[name].tolist() for name in SHAPES)
    x, speed, angle, spin = start
    for step in range(LIMIT):
        hidden = [
            math.tanh(w[0] * x + w[1] * speed + w[2] * angle + w[3] * spin + c)
            for w, c in zip(first, bias, strict=True)
        ]
        force = 10.0 if sum(w * h for w, h in zip(second[0], hidden, strict=True)) > 0 else -10.0
        push = (force + 0.05 * spin * spin * math.sin(angle)) / 1.1
        turn = (9.8 * math.sin(angle) - math.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        x, speed = x + 0.02 * speed, speed + 0.02 * (push - 0.05 * turn * math.cos(angle) / 1.1)
        angle, spin = angle + 0.02 * spin, spin + 0.02 * turn
        if abs(x) > 2.4 or abs(angle) > 0.2095:
            return step
    return LIMIT


def starts(*entropy):
    """EPISODES states near the upright, the same for whoever names the same integers."""
    return np.random.default_rng(entropy).uniform(-0.2, 0.2, (EPISODES, 4)) * (1, 1, 0.5, 1)


def score(mean, seed, generation, pairs, signs):
    """What a worker does: fitness of some members, all from the same starts."""
    tries = starts(generation, *(word & 0xFFFFFFFF for word in seed)).tolist()
    members = (
        member_params(mean, seed=seed, generation=generation, pair=pair, sign=sign)
        for pair, sign in zip(pairs, signs, strict=True)
    )
    return [sum(balance(member, start) for start in tries) / len(tries) for member in members]


def train(generations=30, population_size=128, seed=0, workers=2):
    """Steps balanced by the mean controller at the start and at the end."""
    import jax.numpy as jnp
    import optax

    import eggroll

    random = np.random.default_rng(seed)
    mean = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    es = eggroll.EvolutionStrategy(
        optax.adam(0.1), population_size=population_size, sigma=SIGMA, shaping="centred_rank"
    )
    state = es.init({name: jnp.asarray(value) for name, value in mean.items()}, seed=seed)

    def held_out():
        return float(np.mean([balance(mean, s) for k in range(8) for s in starts(2**32 + k, seed).tolist()]))

    first = held_out()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in range(generations):
            members = es.ask(state)
            common = (mean, members.seed.tolist(), int(members.generation))
            chunks = zip(
                *(np.array_split(np.asarray(x), 4 * workers) for x in (members.pair, members.sign)), strict=True
            )
            jobs = [pool.submit(score, *common, pair.tolist(), sign.tolist()) for pair, sign in chunks]
            state, _ = es.tell(state, list(itertools.chain.from_iterable(job.result() for job in jobs)))
            mean = {name: np.asarray(value) for name, value in state.params.items()}
    return first, held_out()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=30, help="updates")
    parser.add_argument("--population-size", type=int, default=128, help="members, even")
    parser.add_argument("--seed", type=int, default=0, help="of start, starts and noise")
    args = parser.parse_args()
    start, end = train(args.generations, args.population_size, args.seed)
    print(f"balanced {start:.0f} steps at the start, {end:.0f} of {LIMIT} after {args.generations} generations")


if __name__ == "__main__":
    main()
