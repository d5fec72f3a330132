"""`EvolutionStrategy`: the state of a run, and what one does with it: `init`, `ask`, `tell`, `step`.

Source: arXiv 2511.16652, Algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from eggroll.core import memory, noise
from eggroll.core.checks import (
    KnownTrees,
    as_scores,
    check_call,
    check_optimizer,
    check_rounding,
    check_updatable,
    choose_distribution,
    chunk_pairs_of,
    even,
    first_sigma,
)
from eggroll.core.distribution import (
    Distribution,
    Plan,
    Trainable,
    as_patterns,
    make_plan,
)
from eggroll.core.draws import draw_noise, noise_bytes
from eggroll.core.draws import perturb as perturb_params
from eggroll.core.estimate import descent_direction, estimate_gradient, pair_weights
from eggroll.core.fitness import Shaping, shape_by_name
from eggroll.core.layout import Layout, Placement
from eggroll.core.mesh import agreed, check_mesh, check_way, choose_update
from eggroll.core.optimise import only_leaf, optimise, start_optimiser, strong, trainable_leaves
from eggroll.core.population import Evaluation, Setting, evaluate, generation_key
from eggroll.core.sharded import WHOLE, evaluate_on, gradient_on
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
      mesh: devices, with an axis "members" over which the population is shared out (its size divides
        population_size / 2) and optionally an axis "model"; see `device_mesh`. Parameters that lie on it when `init`
        gets them stay as they lie, whole or sharded over "model"; results are those of one device to rounding.
        `chunk_size` is that of a device. Default one device.
      update: how devices share the update: "redraw", "reduce", "rows" (see `core.mesh`), or "auto"
        (`mesh.choose_update` says which).
      layerwise: update leaf by leaf, so that no more than one leaf's gradient is in memory. The optimiser then has a
        state for each leaf and sees that leaf alone: what looks across leaves, such as clipping by the global norm,
        acts on one leaf at a time.

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
        mesh: Mesh | None = None,
        update: str = "auto",
        layerwise: bool = False,
    ) -> None:
        self._arguments: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        check_optimizer(optimizer)
        self.population_size = even("population_size", population_size)
        self.group_size = even("group_size", population_size if group_size is None else group_size)
        if population_size % self.group_size:
            raise ValueError(
                f"expected a group_size that divides population_size {population_size}, got {group_size}; "
                "choose an even divisor"
            )
        if noise_reuse < 1 or int(noise_reuse) != noise_reuse:
            raise ValueError(f"expected noise_reuse ≥ 1, got {noise_reuse}; 1 draws new noise every generation")
        self.noise_reuse = int(noise_reuse)
        self._chunk_pairs = chunk_pairs_of(chunk_size, self.population_size)
        self.distribution = choose_distribution(rank, law, distribution)
        self.shaping = shape_by_name(shaping, self.group_size) if isinstance(shaping, str) else shaping
        self.optimizer = optimizer
        self.sigma = sigma
        self.trainable: Trainable = trainable if callable(trainable) else as_patterns(trainable)
        self.frozen, self.allow_materialise = as_patterns(frozen), as_patterns(allow_materialise)
        self._first_sigma = first_sigma(sigma)
        check_way(update)
        if mesh is not None:
            check_mesh(mesh, self.population_size // 2)
        self.mesh, self.update_way, self.layerwise = mesh, update, layerwise
        self._known_trees = KnownTrees()
        self._placement = Placement(mesh)
        self._init = jax.jit(self._start, static_argnames="layout")
        self._step = jax.jit(self._evaluate_and_update, static_argnames=("fitness", "has_aux", "layout"))
        self._range = jax.jit(self._evaluate_range, static_argnames=("fitness", "has_aux", "pairs"))
        self._weigh = jax.jit(self._evaluate_and_weigh, static_argnames=("fitness", "has_aux"))
        self._weigh_scores = jax.jit(self._summarise_and_weigh)
        self._tell = jax.jit(self._update, static_argnames="layout")
        self._apply = jax.jit(self._apply_weights, static_argnames="layout")
        self._apply_leaf = jax.jit(self._update_leaf, static_argnames=("plan", "index", "tree", "layout"))
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
          ValueError: as `distribution.make_plan`, `checks.check_updatable` and `checks.check_rounding` say.
        """
        plan = self.plan(params)
        check_updatable(plan)
        check_rounding(plan, params, self._first_sigma)
        words = np.array(noise.seed_words(seed), np.int32)
        start = functools.partial(self._start, layout=None)
        params, layout = self._placement.start(params, lambda: jax.eval_shape(start, params, words))
        state: State = self._init(params, words, layout=layout)
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
        scores = as_scores(fitnesses)
        if scores.shape[:1] != (self.population_size,):
            raise ValueError(
                f"expected {self.population_size} fitnesses, got shape {scores.shape}; "
                "pass one for each member, in the order of ask"
            )
        state, layout = self._placement.state(state)
        if self.layerwise:
            weights, info = self._weigh_scores(scores, state.generation)
            return self._apply_by_leaf(state, weights, layout), info
        result: tuple[State, Info] = self._tell(state, scores, layout=layout)
        return result

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
        state, layout, args, carry = self._ready(state, fitness, args, carry, has_aux)
        if self.layerwise:
            weights, info, evaluation = self._weigh(state, args, carry, fitness=fitness, has_aux=has_aux)
            state = self._apply_by_leaf(state, weights, layout)
        else:
            state, info, evaluation = self._step(state, args, carry, fitness=fitness, has_aux=has_aux, layout=layout)
        extra = ([] if carry is None else [evaluation.carry]) + ([evaluation.aux] if has_aux else [])
        return state, info, *extra

    def evaluate(
        self, state: State, fitness: Callable[..., Any], *args: Any, carry: Any = None, has_aux: bool = False
    ) -> tuple[Float[Array, " pairs"], Info, Evaluation]:
        """The first half of `step`: evaluate every member; arguments and errors are those of `step`.

        Returns:
          `pair_weights` of the shaped fitness, which `update` takes; info; and the evaluation itself.
        """
        state, _, args, carry = self._ready(state, fitness, args, carry, has_aux)
        result: tuple[Array, Info, Evaluation] = self._weigh(state, args, carry, fitness=fitness, has_aux=has_aux)
        return result

    def evaluate_range(
        self,
        state: State,
        fitness: Callable[..., Any],
        *args: Any,
        first_pair: int,
        pairs: int,
        carry: Any = None,
        has_aux: bool = False,
    ) -> Evaluation:
        """Evaluate some pairs on one device, whoever evaluates the others; `weigh` joins what they come to.

        Args:
          fitness, args: as in `step`.
          first_pair, pairs: which; compiled once for each number of pairs.
          carry: with a leading axis of the 2·pairs members of the range.
        Raises:
          ValueError: as `step`; or the range is not within the population.
        """
        if not 0 <= first_pair <= first_pair + pairs <= self.population_size // 2 or pairs < 1:
            raise ValueError(
                f"expected a range within {self.population_size // 2} pairs, got {pairs} from {first_pair}; choose "
                "one of these"
            )
        self._known_trees.check(state.params)
        settings = {"fitness": fitness, "has_aux": has_aux, "pairs": pairs}
        result: Evaluation = self._range(state, args, jax.tree.map(strong, carry), jnp.int32(first_pair), **settings)
        return result

    def weigh(self, state: State, fitnesses: Any) -> tuple[Float[Array, " pairs"], Info]:
        """What `evaluate` returns first, of the fitness of all members in order, (members,) or (members, prompts)."""
        weights, info = self._weigh_scores(as_scores(fitnesses), state.generation)
        return weights, info

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
        state, layout = self._placement.state(state)
        if self.layerwise:
            return self._apply_by_leaf(state, values, layout)
        new: State = self._apply(state, values, layout=layout)
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
        return self._perturbed(self._placement.state(state)[0], jnp.int32(member))

    # ── the pure functions behind ──

    def _ready(
        self, state: State, fitness: Callable[..., Any], args: Any, carry: Any, has_aux: bool
    ) -> tuple[State, Layout | None, Any, Any]:
        """State, layout, arguments and carry (without weak types) on their devices, with the tree and chunk known."""
        check_call(state, fitness, args, carry)
        self._known_trees.check(state.params)
        carry = jax.tree.map(strong, carry)
        state, layout = self._placement.state(state)
        args, carry = self._placement.inputs(args, carry, self._setting(self.population_size // 2))
        if self._chunk_pairs is None:
            self._chunk_pairs = self._largest_chunk(state, args, carry, fitness, has_aux)
        return state, layout, args, carry

    def _start(self, params: Any, seed: Any, *, layout: Layout | None) -> State:
        params = jax.tree.map(strong, params)
        leaves, tree = jax.tree.flatten(params)
        opt_state = start_optimiser(self.optimizer, self.plan(params), leaves, tree, self.layerwise)
        state = State(params, opt_state, jnp.asarray(seed), jnp.zeros((), jnp.int32))
        return self._placement.keep(state, layout)

    def _sigma_at(self, generation: Array) -> Float[Array, ""]:
        sigma = self.sigma(generation) if callable(self.sigma) else self.sigma
        return jnp.asarray(sigma, jnp.float32)

    def _evaluate_and_update(
        self,
        state: State,
        args: tuple[Any, ...],
        carry: Any,
        *,
        fitness: Callable[..., Any],
        has_aux: bool,
        layout: Layout | None,
    ) -> tuple[State, Info, Evaluation]:
        evaluation = self._evaluate(state, args, carry, self.population_size // 2, fitness, has_aux)
        state, info = self._update(state, evaluation.fitness, layout=layout)
        return state, info, evaluation

    def _evaluate_and_weigh(
        self, state: State, args: tuple[Any, ...], carry: Any, *, fitness: Callable[..., Any], has_aux: bool
    ) -> tuple[Array, Info, Evaluation]:
        evaluation = self._evaluate(state, args, carry, self.population_size // 2, fitness, has_aux)
        weights, info = self._summarise_and_weigh(evaluation.fitness, state.generation)
        return weights, info, evaluation

    def _evaluate(
        self, state: State, args: Any, carry: Any, pairs: int, fitness: Callable[..., Any], has_aux: bool
    ) -> Evaluation:
        """The first `pairs` pairs of the population."""
        on = evaluate if self.mesh is None else functools.partial(evaluate_on, self.mesh)
        settings = self._evaluation_settings(state, pairs, carry, has_aux)
        plan, indices = self.plan(state.params), jnp.arange(pairs, dtype=jnp.int32)
        result: Evaluation = on(fitness, plan, state.params, indices, args, **settings)
        return result

    def _evaluate_range(
        self,
        state: State,
        args: Any,
        carry: Any,
        first: Array,
        *,
        pairs: int,
        fitness: Callable[..., Any],
        has_aux: bool,
    ) -> Evaluation:
        settings = self._evaluation_settings(state, pairs, carry, has_aux)
        indices = first + jnp.arange(pairs, dtype=jnp.int32)
        return evaluate(fitness, self.plan(state.params), state.params, indices, args, **settings)

    def _evaluation_settings(self, state: State, pairs: int, carry: Any, has_aux: bool) -> dict[str, Any]:
        return {
            "seed": state.seed,
            "generation": state.generation,
            "sigma": self._sigma_at(state.generation),
            "setting": self._setting(pairs),
            "noise_generation": self._noise_generation(state),
            "carry": carry,
            "has_aux": has_aux,
        }

    def _setting(self, pairs: int) -> Setting:
        return Setting(self.population_size, self.group_size, min(self._chunk_pairs or pairs, pairs))

    def _noise_generation(self, state: State) -> Array:
        """The generation whose noise is drawn; the same for `noise_reuse` generations in a row."""
        return state.generation // self.noise_reuse

    def _largest_chunk(self, state: State, args: Any, carry: Any, fitness: Callable[..., Any], has_aux: bool) -> int:
        """Pairs of the largest chunk whose evaluation fits into a device's memory, by compiling a small one."""
        shares = self._placement.shares
        pairs, probe = self.population_size // 2 // shares, memory.PROBE_PAIRS
        if pairs <= probe:
            return pairs
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * probe * shares, *x.shape[1:]), x.dtype), carry)
        evaluation = functools.partial(self._evaluate, pairs=probe * shares, fitness=fitness, has_aux=has_aux)
        size = memory.working_bytes(evaluation, state, args, own)
        budget = memory.memory_budget(state.params, self._placement.neighbours)
        return agreed(self.mesh, memory.largest_chunk(pairs, probe, size, budget))

    def _update(self, state: State, scores: Array, *, layout: Layout | None) -> tuple[State, Info]:
        weights, info = self._summarise_and_weigh(scores, state.generation)
        return self._apply_weights(state, weights, layout=layout), info

    def _summarise_and_weigh(self, scores: Array, generation: Array) -> tuple[Float[Array, " pairs"], Info]:
        return self._weights(scores), summarise(scores, self._sigma_at(generation), generation)

    def _weights(self, scores: Array) -> Float[Array, " pairs"]:
        utilities = self.shaping(scores)
        if jnp.shape(utilities) != (self.population_size,):
            raise ValueError(
                f"expected utilities of shape ({self.population_size},) from the shaping, got "
                f"{jnp.shape(utilities)} "
                f"for fitnesses of shape {scores.shape}; use a shaping that takes these"
            )
        return pair_weights(utilities)

    def _apply_weights(self, state: State, weights: Float[Array, " pairs"], *, layout: Layout | None) -> State:
        plan = self.plan(state.params)
        leaves, tree = jax.tree.flatten(state.params)
        direction = descent_direction(self._gradient(plan, state, weights, layout, self._update_chunk(plan)))
        values, opt_state = optimise(self.optimizer, plan, leaves, tree, direction, state.opt_state)
        new = State(jax.tree.unflatten(tree, values), opt_state, state.seed, state.generation + 1)
        return self._placement.keep(new, layout)

    def _gradient(self, plan: Plan, state: State, weights: Array, layout: Layout | None, chunk: int) -> list[Any]:
        """Of the leaves that the plan does not freeze."""
        settings: dict[str, Any] = {
            "seed": state.seed,
            "generation": self._noise_generation(state),
            "sigma": self._sigma_at(state.generation),
            "population_size": self.population_size,
            "chunk_pairs": chunk,
        }
        pairs = self.population_size // 2
        if self.mesh is None or layout is None:
            return estimate_gradient(plan, weights, jnp.arange(pairs, dtype=jnp.int32), **settings)
        way = choose_update(
            self.update_way,
            pairs=pairs,
            rank=self.distribution.rank,
            devices=self.mesh.size,
            sharded=layout.is_sharded(self.mesh),
        )
        return gradient_on(self.mesh, way, plan, layout.params, weights, **settings)

    def _apply_by_leaf(self, state: State, weights: Array, layout: Layout | None) -> State:
        """`_apply_weights` in one call for each leaf, whose gradient and other temporaries are freed before the next.

        The old parameters are not: they are the caller's.
        """
        plan = self.plan(state.params)
        leaves, tree = jax.tree.flatten(state.params)
        opt_states = list(state.opt_state)
        for k, index in enumerate(trainable_leaves(plan)):
            only = [leaf if i == index else None for i, leaf in enumerate(leaves)]
            own = State(only[index], opt_states[k], state.seed, state.generation)
            own_layout = None if layout is None else layout.of_leaf(index, k, state.opt_state)
            leaves[index], opt_states[k] = self._apply_leaf(
                own, weights, plan=plan, index=index, tree=tree, layout=own_layout
            )
            jax.block_until_ready(leaves[index])  # else the next leaf's gradient would be there beside this one's
        return State(jax.tree.unflatten(tree, leaves), tuple(opt_states), state.seed, state.generation + 1)

    def _update_leaf(
        self, state: State, weights: Array, *, plan: Plan, index: int, tree: Any, layout: Layout | None
    ) -> tuple[Array, Any]:
        """One leaf and its optimiser state, of a `State` whose parameters are that leaf."""
        own, leaves = only_leaf(plan, index), [None] * index + [state.params] + [None] * (len(plan) - index - 1)
        specs = [WHOLE] * len(plan)
        if layout is not None:
            specs[index] = layout.params[0]
        among = None if layout is None else layout._replace(params=tuple(specs))
        direction = descent_direction(self._gradient(own, state, weights, among, self._update_chunk(plan)))
        values, opt_state = optimise(self.optimizer, own, leaves, tree, direction, state.opt_state)
        new = State(values[index], opt_state, state.seed, state.generation)
        new = self._placement.keep(new, layout)
        return new.params, new.opt_state

    def _update_chunk(self, plan: Plan) -> int:
        """Pairs whose noise the update draws at a time: those of the evaluation, or more where these are few.

        Their number depends on the settings and the parameters alone, never on the machine: another would round
        differently.
        """
        parts = [only_leaf(plan, index) for index in trainable_leaves(plan)] if self.layerwise else [plan]
        drawn = 3 * max(map(noise_bytes, parts))
        budget = max(memory.update_budget([leaf for leaf in own if not leaf.frozen or own is plan]) for own in parts)
        enough = memory.largest_chunk(self.population_size // 2, 1, drawn, budget)
        return max(self._chunk_pairs or 1, enough)

    def _dense_member(self, state: State, member: Array) -> Any:
        plan, sign = self.plan(state.params), (1 - 2 * (member % 2)).astype(jnp.float32)
        generation = self._noise_generation(state)
        drawn = draw_noise(plan, seed=state.seed, generation=generation, pairs=(member // 2)[None])
        own = jax.tree.map(lambda x: x[0], drawn)
        moved = perturb_params(plan, state.params, own, sign * self._sigma_at(state.generation))
        return written_out(moved)
