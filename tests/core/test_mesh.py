"""More than one device: what is refused, what is chosen, and the laws on 8 devices in a process of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import eggroll
from eggroll.core import noise
from eggroll.core.distribution import make_plan
from eggroll.core.draws import Block, weighted_noise
from eggroll.core.mesh import block_spec, check_mesh, choose_update, device_mesh, place
from tests.eight import run_on_eight

PARAMS = {"b": jnp.zeros(3), "w": jnp.ones((4, 3))}


def strategy(mesh, **kwargs):
    return eggroll.EvolutionStrategy(optax.sgd(0.1), **{"population_size": 12, "sigma": 0.1, "mesh": mesh} | kwargs)


def test_the_laws_on_eight_devices():
    run_on_eight("core/eight_mesh.py")


@pytest.mark.parametrize(
    ("axes", "shape", "match"),
    [
        (
            ("population",),
            (2,),
            'expected a mesh with an axis "members" and at most one other, "model", got population',
        ),
        (
            ("members", "data"),
            (2, 1),
            'and at most one other, "model", got members, data; eggroll.device_mesh makes one',
        ),
    ],
)
def test_other_axes_are_refused(axes, shape, match):
    with pytest.raises(ValueError, match=match):
        strategy(Mesh(np.array(jax.devices()).reshape(shape), axes))


def test_explicit_axes_are_refused():
    with pytest.raises(ValueError, match="expected a mesh whose axes are of type Auto, got Explicit"):
        strategy(Mesh(np.array(jax.devices()), ("members",), axis_types=(AxisType.Explicit,)))


def test_a_population_that_does_not_divide_is_refused_with_sizes_that_work():
    with pytest.raises(ValueError, match=r"= 7 to divide over 2 devices .*; use 1 devices or population_size=16"):
        strategy(device_mesh(2), population_size=14)


def test_parameters_sharded_over_members_are_refused():
    mesh = device_mesh(2)
    with pytest.raises(ValueError, match=r"expected leaf 'w' whole or sharded over \"model\", got .*members"):
        strategy(mesh).init(PARAMS | {"w": place(mesh, PARAMS["w"], P("members"))})


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="expected update among auto, redraw, reduce, rows, got 'ring'; choose auto"):
        strategy(None, update="ring")


def test_device_meshes():
    assert dict(device_mesh().shape) == {"members": 2, "model": 1}
    assert dict(eggroll.device_mesh(model=2).shape) == {"members": 1, "model": 2}
    for wrong in ((3, 1), (2, 2), (0, 1), (1, 0)):
        with pytest.raises(ValueError, match="expected members × model of at most 2 devices, got"):
            device_mesh(*wrong)
    check_mesh(device_mesh(2), 6)


def test_the_way_that_auto_takes():
    few = {"pairs": 64, "rank": 1, "devices": 8}
    assert choose_update("auto", **few, sharded=False) == "redraw"
    assert choose_update("auto", **few | {"pairs": 2**16}, sharded=False) == "reduce"
    assert choose_update("auto", **few | {"rank": 64}, sharded=False) == "reduce"
    assert choose_update("auto", **few | {"devices": 1, "pairs": 2**20}, sharded=False) == "redraw"
    assert choose_update("auto", **few, sharded=True) == "rows"
    assert choose_update("reduce", **few, sharded=True) == "reduce"


def test_how_rows_cuts_a_leaf():
    mesh = device_mesh(1, 2)
    assert block_spec(mesh, (6, 4), [0, 1], P()) == P(("members", "model"))
    assert block_spec(mesh, (5, 4), [0, 1], P()) == P("members", "model")
    assert block_spec(mesh, (5, 4), [1, 0], P(None, "model")) == P(None, ("model", "members"))
    assert block_spec(mesh, (5,), [0], P()) == P("members")
    assert block_spec(mesh, (), [], P()) == P()


@pytest.mark.parametrize(
    ("shape", "kwargs", "start", "size"),
    [
        ((6, 8), {}, (2, 4), (3, 2)),
        ((3, 6, 8), {"stacked": {"w": 1}}, (1, 2, 4), (2, 3, 2)),
        ((4, 6, 8), {"split": {"w": 2}}, (1, 2, 4), (2, 3, 4)),
        ((5, 7), {"split": {"w": 0}}, (2, 3), (2, 3)),
    ],
)
def test_the_sum_of_a_block_is_that_block_of_the_sum(shape, kwargs, start, size):
    """Whatever the roles of a leaf's axes: its noise is numbered over the whole leaf."""
    plan = make_plan(eggroll.LowRank(2, **kwargs), {"w": jnp.zeros(shape)})
    draws = {"seed": jnp.array(noise.seed_words(3), jnp.int32), "generation": jnp.int32(1)}
    pairs, weights = jnp.arange(4, dtype=jnp.int32), jnp.array([1.0, -2.0, 0.5, 3.0])
    (whole,) = weighted_noise(plan, weights, pairs=pairs, **draws)
    block = Block(size, tuple(map(jnp.int32, start)))
    (part,) = weighted_noise(plan, weights, pairs=pairs, blocks=[block], **draws)
    inside = tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))
    np.testing.assert_allclose(part, whole[inside], rtol=1e-6, atol=1e-6)
