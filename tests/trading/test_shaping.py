"""How members are ranked by the PnL of their episodes, against plain NumPy."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.trading.execute import episode_rank, risk_rank


def plain_rank(values):
    """The centred rank, ties sharing their mean."""
    below = (values[None, :] < values[:, None]).sum(1)
    upto = (values[None, :] <= values[:, None]).sum(1)
    return (below + upto - 1) / (2 * (len(values) - 1)) - 0.5


scores = st.lists(st.lists(st.integers(-50, 50), min_size=3, max_size=3), min_size=2, max_size=8)


@settings(deadline=None)
@given(scores)
def test_each_episode_counts_by_its_own_rank(rows):
    own = np.array(rows, np.float32)
    wanted = np.mean([plain_rank(own[:, number]) for number in range(3)], axis=0)
    np.testing.assert_allclose(episode_rank(jnp.asarray(own)), wanted, atol=1e-6)
    grown = own.copy()
    grown[:, 0] *= 1000  # an episode in which prices run away counts no more
    np.testing.assert_array_equal(episode_rank(jnp.asarray(grown)), episode_rank(jnp.asarray(own)))


@settings(deadline=None)
@given(scores, st.sampled_from([0.5, 1.0, 2.0]))
def test_risk_is_weighed_against_the_mean(rows, aversion):
    own = np.array(rows, np.float32)
    utility = own.mean(1) - aversion * own.std(1)
    found = np.asarray(risk_rank(aversion)(jnp.asarray(own)))
    assert abs(found.sum()) < 1e-5 and found.min() >= -0.5 and found.max() <= 0.5
    gap = utility[:, None] - utility[None, :]
    assert ((found[:, None] - found[None, :])[gap > 1e-3] > 0).all()


def test_a_calm_member_is_above_a_wild_one_of_a_little_more():
    calm, wild = [10.0, 10.0, 10.0], [41.0, -19.0, 11.0]
    found = [np.asarray(shape(jnp.array([calm, wild]))) for shape in (risk_rank(0.5), risk_rank(0.01))]
    assert found[0].tolist() == [0.5, -0.5] and found[1].tolist() == [-0.5, 0.5]


def test_the_header_says_which():
    assert risk_rank(0.5).__name__ == "risk_rank(0.5)" != risk_rank(1.0).__name__
