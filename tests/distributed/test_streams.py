"""Trees in pieces, and their fingerprints."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eggroll.distributed.streams import NO_SPAN, Arriving, described, fingerprint, stream
from eggroll.distributed.wire import MESSAGE_LIMIT, PIECE, Inbox, Piece, Tree, WireError, unpack_piece
from eggroll.runs.trees import raw


def sent(tree):
    inbox = Inbox(MESSAGE_LIMIT)
    for data in stream(tree, Tree.PARAMETERS, NO_SPAN, run=1, generation=2):
        for message in inbox.feed(data):
            yield unpack_piece(message.body)


def there_and_back(tree, template=None):
    arriving = Arriving(tree if template is None else template)
    for piece in sent(tree):
        arriving.take(piece)
    return arriving.tree()


TREE = {
    "a": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "b": [np.arange(5, dtype=np.int8), jnp.zeros((0, 3)), jnp.float32(2.5)],
    "c": jax.random.key(3),
    "d": jnp.array([True, False]),
}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(raw(a)), np.asarray(raw(b)))


@pytest.mark.parametrize("template", [TREE, described(TREE)])
def test_trees_come_back(template):
    same(there_and_back(TREE, template), TREE)


def test_a_leaf_of_several_pieces():
    tree = {"x": np.arange(PIECE // 4 + 3, dtype=np.int32), "y": np.ones(3)}
    assert len(list(sent(tree))) == 3
    same(there_and_back(tree), tree)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"leaf": 1}, "expected leaf 0 from byte 0, got leaf 1"),
        ({"offset": 4}, "got leaf 0 from 4"),
        ({"data": bytes(21)}, "expected 20 bytes of leaf 0, got more"),
    ],
)
def test_other_pieces_are_refused(change, complaint):
    piece = Piece(Tree.PARAMETERS, NO_SPAN, 0, 0, bytes(20))._replace(**change)
    with pytest.raises(WireError, match=complaint):
        Arriving([np.zeros(5, np.int32), np.zeros(2)]).take(piece)


def test_a_tree_that_lacks_something_is_none():
    arriving = Arriving([np.zeros(5, np.int32), np.zeros(2)])
    arriving.take(Piece(Tree.PARAMETERS, NO_SPAN, 0, 0, bytes(20)))
    with pytest.raises(WireError, match="expected 2 leaves, got 1"):
        arriving.tree()


def test_memory_beyond_the_tree_is_a_leaf_and_some_pieces():
    """32 leaves of 2 MiB: the receiver gives up its old tree, and neither side makes a second one."""
    leaf, count = 2 * 2**20, 32
    tree = [np.full(leaf, k, np.uint8) for k in range(count)]
    old = [np.zeros(leaf, np.uint8) for _ in range(count)]
    arriving = Arriving(old)
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    del old  # from before the tracing: letting go of it is not counted, so what is held anew is
    peak = 0
    for piece in sent(tree):
        arriving.take(piece)
        peak = max(peak, tracemalloc.get_traced_memory()[1] - base)
    tracemalloc.stop()
    assert peak < count * leaf + leaf + 6 * PIECE
    same(arriving.tree(), tree)


def test_the_old_leaves_are_let_go_one_by_one():
    import weakref

    class Counted(np.ndarray):
        pass

    old = [np.zeros(8, np.uint8).view(Counted) for _ in range(3)]
    alive = [weakref.ref(leaf) for leaf in old]
    arriving = Arriving(old)
    del old
    counts = []
    for piece in sent([np.ones(8, np.uint8)] * 3):
        arriving.take(piece)
        counts.append(sum(ref() is not None for ref in alive))
    assert counts == [2, 1, 0]


DTYPES = st.sampled_from([np.int8, np.uint8, np.int32, np.float32, np.bool_, np.float16])


@settings(deadline=None)  # each shape is compiled
@given(DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 20))), st.data())
def test_fingerprints_tell_one_changed_bit(array, data):
    at = data.draw(st.integers(0, array.size - 1))
    changed = array.copy()
    view = changed.view(np.uint8)
    byte = at * array.itemsize
    view[byte] ^= 1 if array.dtype == np.bool_ else 1 << data.draw(st.integers(0, 7))
    assert fingerprint([array]) == fingerprint([jnp.asarray(array)])
    assert fingerprint([array]) != fingerprint([changed])


def test_fingerprints_tell_order_and_place():
    a, b = np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)[::-1].copy()
    found = {fingerprint(tree) for tree in ([a], [b], [a, b], [b, a], [np.zeros(4, np.int32)], [np.zeros(5, np.int32)])}
    assert len(found) == 6
    assert fingerprint(()) == fingerprint([jnp.zeros((0,))]) == 0
    assert 0 <= fingerprint([a]) < 2**64
