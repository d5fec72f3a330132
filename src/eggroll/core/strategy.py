"""`EvolutionStrategy`: the state of a run, and what one does with it: `init`, `ask`, `tell`, `step`.

Source: arXiv 2511.16652, Algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from eggroll.core import memory, noise
from eggroll.core.checks import KnownTrees, check_rounding
from eggroll.core.distribution import (
    Distribution,
    FullRank,
    LowRank,
    Plan,
    Trainable,
    as_patterns,
    make_plan,
)
from eggroll.core.draws import draw_noise, noise_bytes
from eggroll.core.draws import perturb as perturb_params
from eggroll.core.draws import trainable as trainable_tree
from eggroll.core.estimate import descent_direction, estimate_gradient, pair_weights
from eggroll.core.fitness import Shaping, shape_by_name
from eggroll.core.population import Evaluation, Setting, evaluate, generation_key
from eggroll.core.state import Info, Members, State, summarise
from eggroll.core.value import written_out


class EvolutionStrategy:
    """EGGROLL, or OpenES with `distribution=FullRank()`, around any optax optimiser.

    Args:
      optimizer: an optax transformation; it sees −g, and frozen leaves as `optax.MaskedNode`.
      population_size: members, even, ≥ 2.
      sigma: standard deviation of the perturbation in weight units, > 0; a float or an optax schedule of the
        generation, whose end may be 0: the gradient is then zero.
      rank: of a matrix's perturbation, default 1; not together with `distribution`.
      law: of the noise, default "popcount"; not together with `distribution`.
      distribution: `LowRank(…)` or `FullRank(…)`, in place of `rank` and `law`.
      shaping: raw fitness to utilities: a name (see `fitness.shape_by_name`) or a function.
      group_size: members that share key and data, even, a divisor of `population_size`; default all.
      chunk_size: members evaluated at a time, even. "auto" takes at the first step the largest chunk whose working
        memory fits (see `core.memory`; it compiles a small one of that fitness first), and the attribute `chunk_size`
        then tells it. Results do not depend on it but by rounding.
      noise_reuse: generations that a perturbation lives, ≥ 1: members keep their perturbations for so many updates,
        each estimated from that generation's own fitness.
      trainable: patterns of the leaves that evolve, such as "*/kernel", or a predicate `(path, leaf) → bool`; the
        others are frozen: neither perturbed nor updated, and shared by all members.
      frozen: patterns of leaves that do not evolve, whatever `trainable` says.
      allow_materialise: patterns of leaves whose dense matrix a member may form.

    A pattern is that of `fnmatch` on a leaf's path, "decoder/0/kernel"; one or a sequence of them.

    Settings are fixed: setting an attribute later raises AttributeError. A state belongs to no strategy, and so a
    new one can go on from it.

    Raises:
      ValueError: a setting is outside what is said here.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        *,
        population_size: int,
        sigma: float | Callable[[Any], Any],
        rank: int | None = None,
        law: str | None = None,
        distribution: Distribution | None = None,
        shaping: str | Shaping = "z_score",
        group_size: int | None = None,
        chunk_size: int | str = "auto",
        noise_reuse: int = 1,
        trainable: str | Trainable = ("*",),
        frozen: str | Sequence[str] = (),
        allow_materialise: str | Sequence[str] = (),
    ) -> None:
        self._arguments: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        self.population_size = _even("population_size", population_size)
        self.group_size = _even("group_size", population_size if group_size is None else group_size)
        if population_size % self.group_size:
            raise ValueError(
                f"expected a group_size that divides population_size {population_size}, got {group_size}; "
                "choose an even divisor"
            )
        if noise_reuse < 1 or int(noise_reuse) != noise_reuse:
            raise ValueError(f"expected noise_reuse ≥ 1, got {noise_reuse}; 1 draws new noise every generation")
        self.noise_reuse = int(noise_reuse)
        self._chunk_pairs = _chunk_pairs(chunk_size, self.population_size)
        self.distribution = _choose_distribution(rank, law, distribution)
        self.shaping = shape_by_name(shaping, self.group_size) if isinstance(shaping, str) else shaping
        self.optimizer = optimizer
        self.sigma = sigma
        self.trainable: Trainable = trainable if callable(trainable) else as_patterns(trainable)
        self.frozen, self.allow_materialise = as_patterns(frozen), as_patterns(allow_materialise)
        self._first_sigma = float(sigma(0) if callable(sigma) else sigma)
        if not self._first_sigma > 0:
            raise ValueError(f"expected sigma > 0, got {self._first_sigma}; 0.01 to 0.1 suits most models")
        self._known_trees = KnownTrees()
        self._init = jax.jit(self._start)
        self._step = jax.jit(self._evaluate_and_update, static_argnames=("fitness", "has_aux"))
        self._tell = jax.jit(self._update)
        self._weigh = jax.jit(self._evaluate_and_weigh, static_argnames=("fitness", "has_aux"))
        self._apply = jax.jit(self._apply_weights)
        self._perturbed = jax.jit(self._dense_member)
        self._settled = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse new settings: compiled steps would not see them."""
        if not name.startswith("_") and getattr(self, "_settled", False):
            raise AttributeError(
                f"expected settings fixed at construction, got a new {name}; build a new EvolutionStrategy, which "
                "can go on from the same state"
            )
        super().__setattr__(name, value)

    # ── what one does with it ──

    def init(self, params: Any, seed: int = 0) -> State:
        """Start a run at `params`.

        Args:
          params: any pytree of float arrays; others are to be named in `frozen`.
          seed: in [0, 2⁶⁴).
        Raises:
          ValueError: as `distribution.make_plan` and `checks.check_rounding` say.
        """
        check_rounding(self.plan(params), params, self._first_sigma)
        state: State = self._init(params, jnp.array(noise.seed_words(seed), jnp.int32))
        self._known_trees.add(state.params)
        return state

    def plan(self, params: Any) -> Plan:
        """How each leaf of `params` is perturbed."""
        return make_plan(
            self.distribution,
            params,
            trainable=self.trainable,
            frozen=self.frozen,
            allow_materialise=self.allow_materialise,
        )

    @property
    def chunk_size(self) -> int | None:
        """Members evaluated at a time; None as long as "auto" is not resolved."""
        return None if self._chunk_pairs is None else 2 * self._chunk_pairs

    def ask(self, state: State) -> Members:
        """The members of this generation, for those who evaluate them elsewhere."""
        member = jnp.arange(self.population_size, dtype=jnp.int32)
        group = member // self.group_size
        key = generation_key(state.seed, state.generation)
        keys = jax.vmap(lambda g: jax.random.fold_in(key, g))(group)
        sign, drawn = 1 - 2 * (member % 2), self._noise_generation(state)
        sigma = self._sigma_at(state.generation)
        return Members(member, member // 2, sign, group, keys, state.seed, state.generation, drawn, sigma)

    def tell(self, state: State, fitnesses: Any) -> tuple[State, Info]:
        """Update from fitness that comes from elsewhere.

        Args:
          state: the one that `ask` was given.
          fitnesses: (members,) numbers in the order of `ask`, higher is better; or (members, prompts) where
            the shaping takes these.
        Raises:
          ValueError: the number of fitnesses is wrong, or the parameters are not those of `init`.
        """
        self._known_trees.check(state.params)
        scores = jnp.asarray(fitnesses, jnp.float32)
        if scores.shape[:1] != (self.population_size,):
            raise ValueError(
                f"expected {self.population_size} fitnesses, got shape {scores.shape}; "
                "pass one for each member, in the order of ask"
            )
        return self._tell(state, scores)

    def step(
        self, state: State, fitness: Callable[..., Any], *args: Any, carry: Any = None, has_aux: bool = False
    ) -> tuple[Any, ...]:
        """Evaluate every member and update; compiled once for each fitness function.

        Args:
          fitness: `fitness(params, key, *args)` for one member, or `fitness(params, key, carry, *args)` with
            a carry. It returns a scalar, higher is better, or (fitness, carry, aux) leaving out what is
            unused. Pass the same
            function each time: a new lambda is compiled anew.
          args: pytrees for every member alike, or inside `per_group`.
          carry: pytree with a leading axis of members, from the last generation.
          has_aux: whether fitness returns aux.
        Returns:
          (state, info), then the new carry where one was passed, then aux where `has_aux`; both with a
          leading axis of members.
        Raises:
          ValueError: fitness returns no scalar number, or the parameters are not those of `init`.
          MaterialiseError: the model needs the dense matrix of a leaf that may not be materialised.
        """
        carry = self._ready(state, fitness, args, carry, has_aux)
        state, info, evaluation = self._step(state, args, carry, fitness=fitness, has_aux=has_aux)
        extra = ([] if carry is None else [evaluation.carry]) + ([evaluation.aux] if has_aux else [])
        return state, info, *extra

    def evaluate(
        self, state: State, fitness: Callable[..., Any], *args: Any, carry: Any = None, has_aux: bool = False
    ) -> tuple[Float[Array, " pairs"], Info, Evaluation]:
        """The first half of `step`: evaluate every member; arguments and errors are those of `step`.

        Returns:
          `pair_weights` of the shaped fitness, which `update` takes; info; and the evaluation itself.
        """
        carry = self._ready(state, fitness, args, carry, has_aux)
        result: tuple[Array, Info, Evaluation] = self._weigh(state, args, carry, fitness=fitness, has_aux=has_aux)
        return result

    def update(self, state: State, weights: Any) -> State:
        """The second half of `step`: one update from the weights of pairs, whoever has kept or sent them.

        Args:
          weights: (pairs,) numbers, `w_p = (u_{2p} − u_{2p+1})/2` of utilities u.
        Raises:
          ValueError: their number is wrong, or the parameters are not those of `init`.
        """
        self._known_trees.check(state.params)
        values = jnp.asarray(weights, jnp.float32)
        if values.shape != (self.population_size // 2,):
            raise ValueError(
                f"expected {self.population_size // 2} weights, got shape {values.shape}; pass one for each pair"
            )
        new: State = self._apply(state, values)
        return new

    def resolve_chunk_size(
        self, state: State, fitness: Callable[..., Any], *args: Any, carry: Any = None, has_aux: bool = False
    ) -> int:
        """Find what "auto" means for this fitness, as the first `step` would, and return `chunk_size`."""
        self._ready(state, fitness, args, carry, has_aux)
        return self.chunk_size or self.population_size

    def with_chunk_size(self, chunk_size: int) -> EvolutionStrategy:
        """The same strategy with that chunk size, such as the one that a run has recorded; itself where it has it."""
        if self.chunk_size == chunk_size:
            return self
        return EvolutionStrategy(**self._arguments | {"chunk_size": chunk_size})

    def perturbed(self, state: State, member: int) -> Any:
        """The dense parameters of one member of this generation.

        Raises:
          ValueError: there is no such member.
        """
        if not 0 <= member < self.population_size:
            raise ValueError(f"expected a member in [0, {self.population_size}), got {member}; choose one of these")
        self._known_trees.check(state.params)
        return self._perturbed(state, jnp.int32(member))

    # ── the pure functions behind ──

    def _ready(self, state: State, fitness: Callable[..., Any], args: Any, carry: Any, has_aux: bool) -> Any:
        """The carry without weak types, once the tree is known and the chunk size found."""
        self._known_trees.check(state.params)
        carry = jax.tree.map(_strong, carry)
        if self._chunk_pairs is None:
            self._chunk_pairs = self._largest_chunk(state, args, carry, fitness, has_aux)
        return carry

    def _start(self, params: Any, seed: Array) -> State:
        params = jax.tree.map(_strong, params)
        leaves, tree = jax.tree.flatten(params)
        opt_state = self.optimizer.init(trainable_tree(self.plan(params), leaves, tree))
        return State(params, jax.tree.map(_strong, opt_state), seed, jnp.zeros((), jnp.int32))

    def _sigma_at(self, generation: Array) -> Float[Array, ""]:
        sigma = self.sigma(generation) if callable(self.sigma) else self.sigma
        return jnp.asarray(sigma, jnp.float32)

    def _evaluate_and_update(
        self, state: State, args: tuple[Any, ...], carry: Any, *, fitness: Callable[..., Any], has_aux: bool
    ) -> tuple[State, Info, Evaluation]:
        evaluation = self._evaluate(state, args, carry, self.population_size // 2, fitness, has_aux)
        state, info = self._update(state, evaluation.fitness)
        return state, info, evaluation

    def _evaluate_and_weigh(
        self, state: State, args: tuple[Any, ...], carry: Any, *, fitness: Callable[..., Any], has_aux: bool
    ) -> tuple[Array, Info, Evaluation]:
        evaluation = self._evaluate(state, args, carry, self.population_size // 2, fitness, has_aux)
        info = summarise(evaluation.fitness, self._sigma_at(state.generation), state.generation)
        return self._weights(evaluation.fitness), info, evaluation

    def _evaluate(
        self, state: State, args: Any, carry: Any, pairs: int, fitness: Callable[..., Any], has_aux: bool
    ) -> Evaluation:
        """The first `pairs` pairs of the population."""
        return evaluate(
            fitness,
            self.plan(state.params),
            state.params,
            jnp.arange(pairs, dtype=jnp.int32),
            args,
            seed=state.seed,
            generation=state.generation,
            sigma=self._sigma_at(state.generation),
            setting=Setting(self.population_size, self.group_size, min(self._chunk_pairs or pairs, pairs)),
            noise_generation=self._noise_generation(state),
            carry=carry,
            has_aux=has_aux,
        )

    def _noise_generation(self, state: State) -> Array:
        """The generation whose noise is drawn; the same for `noise_reuse` generations in a row."""
        return state.generation // self.noise_reuse

    def _largest_chunk(self, state: State, args: Any, carry: Any, fitness: Callable[..., Any], has_aux: bool) -> int:
        """Pairs of the largest chunk whose evaluation fits into memory, by compiling a small one."""
        pairs = self.population_size // 2
        probe = memory.PROBE_PAIRS
        if pairs <= probe:
            return pairs
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * probe, *x.shape[1:]), x.dtype), carry)
        evaluation = functools.partial(self._evaluate, pairs=probe, fitness=fitness, has_aux=has_aux)
        size = memory.working_bytes(evaluation, state, args, own)
        return memory.largest_chunk(pairs, probe, size, memory.memory_budget(state.params))

    def _update(self, state: State, scores: Array) -> tuple[State, Info]:
        info = summarise(scores, self._sigma_at(state.generation), state.generation)
        return self._apply_weights(state, self._weights(scores)), info

    def _weights(self, scores: Array) -> Float[Array, " pairs"]:
        utilities = self.shaping(scores)
        if jnp.shape(utilities) != (self.population_size,):
            raise ValueError(
                f"expected utilities of shape ({self.population_size},) from the shaping, got "
                f"{jnp.shape(utilities)} "
                f"for fitnesses of shape {scores.shape}; use a shaping that takes these"
            )
        return pair_weights(utilities)

    def _apply_weights(self, state: State, weights: Float[Array, " pairs"]) -> State:
        plan, sigma = self.plan(state.params), self._sigma_at(state.generation)
        gradient = estimate_gradient(
            plan,
            weights,
            jnp.arange(self.population_size // 2, dtype=jnp.int32),
            seed=state.seed,
            generation=self._noise_generation(state),
            sigma=sigma,
            population_size=self.population_size,
            chunk_pairs=self._update_chunk(plan, state.params),
        )
        params, opt_state = self._optimise(plan, state, descent_direction(gradient))
        return State(params, opt_state, state.seed, state.generation + 1)

    def _update_chunk(self, plan: Plan, params: Any) -> int:
        """Pairs whose noise the update draws at a time: those of the evaluation, or more where these are few.

        Their number depends on the settings and the parameters alone, never on the machine: another would round
        differently.
        """
        enough = memory.largest_chunk(self.population_size // 2, 1, 3 * noise_bytes(plan), memory.update_budget(params))
        return max(self._chunk_pairs or 1, enough)

    def _optimise(self, plan: Plan, state: State, direction: list[Any]) -> tuple[Any, Any]:
        """One step of optax on the trainable leaves; dtypes stay, so that nothing is compiled again."""
        leaves, tree = jax.tree.flatten(state.params)
        mean = trainable_tree(plan, leaves, tree)
        updates, opt_state = self.optimizer.update(trainable_tree(plan, direction, tree), state.opt_state, mean)
        moved = iter(jax.tree.leaves(optax.apply_updates(mean, updates)))
        params = [old if leaf.frozen else next(moved) for leaf, old in zip(plan, leaves, strict=True)]
        return jax.tree.unflatten(tree, params), jax.tree.map(_keep_dtype, opt_state, state.opt_state)

    def _dense_member(self, state: State, member: Array) -> Any:
        plan, sign = self.plan(state.params), (1 - 2 * (member % 2)).astype(jnp.float32)
        generation = self._noise_generation(state)
        drawn = draw_noise(plan, seed=state.seed, generation=generation, pairs=(member // 2)[None])
        own = jax.tree.map(lambda x: x[0], drawn)
        moved = perturb_params(plan, state.params, own, sign * self._sigma_at(state.generation))
        return written_out(moved)


def _even(name: str, value: int) -> int:
    if value < 2 or value % 2 or int(value) != value:
        raise ValueError(
            f"expected an even {name} ≥ 2, got {value}; members come in antithetic pairs, "
            f"choose {max(2, int(value) // 2 * 2 + 2)}"
        )
    return int(value)


def _chunk_pairs(chunk_size: int | str, population_size: int) -> int | None:
    """Pairs of a chunk; None where they are to be found at the first step."""
    if chunk_size == "auto":
        return None
    if isinstance(chunk_size, str):
        raise ValueError(f'expected an even chunk_size or "auto", got {chunk_size!r}; "auto" takes what fits')
    return min(_even("chunk_size", chunk_size), population_size) // 2


def _choose_distribution(rank: int | None, law: str | None, distribution: Distribution | None) -> Distribution:
    if distribution is None:
        return LowRank(rank=1 if rank is None else rank, law="popcount" if law is None else law)
    if rank is not None or law is not None:
        kind = "FullRank" if isinstance(distribution, FullRank) else "LowRank"
        raise ValueError(
            f"expected rank and law inside the distribution, got rank={rank} and law={law} beside {kind}; "
            "set them in the distribution alone"
        )
    return distribution


def _strong(x: Any) -> Array:
    """An array without JAX's weak type, which would have the first step compiled twice."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x


def _keep_dtype(new: Array, old: Array) -> Array:
    return jax.lax.convert_element_type(new, old.dtype) if jnp.issubdtype(old.dtype, jnp.number) else new
