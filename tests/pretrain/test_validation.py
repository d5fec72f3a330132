"""validation.py: documents side by side give the very integers of the stream read in one go."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.integer import model
from eggroll.pretrain import validation
from tests.integer import oracle
from tests.integer.test_model import random_parameters

CONFIG = model.Config(layers=2, width=16)
STREAMS = {
    "many documents": b"\0the first\0a second one\0and a third\0x\0five\0six\0seven\0the last of these",
    "one document": b"\0nothing but this one, from the first to the last byte",
    "the last one short": b"\0a long document, the longest\0another one of them\0z",
    "the last one empty": b"\0a document\0another\0",
    "no 0 at the start": b"begins at once\0then a second, longer than it\0end",
    "empty documents": b"\0\0\0a\0\0b\0\0",
    "two bytes": b"\0a",
}


def without_noise():
    """For the oracle: factors and products of 0."""
    out = {}
    for path, shape in model.leaf_shapes(CONFIG).items():
        sides = tuple(np.zeros((*shape[:-2], rows, 1), np.int64) for rows in shape[-2:])
        out[path] = sides if model.is_matrix(path) else np.zeros(shape, np.int64)
    return out


def as_array(content):
    return np.frombuffer(content, np.uint8)


@pytest.mark.parametrize("name", STREAMS)
def test_bits_per_byte_are_those_of_one_pass(monkeypatch, name):
    monkeypatch.setattr(validation, "SEGMENT", 8)
    stream, leaves = as_array(STREAMS[name]), random_parameters(CONFIG, 5)
    validator = validation.make_validator(CONFIG, stream)
    got = validator(model.nested(leaves))
    likelihood = oracle.forward(leaves, without_noise(), stream, np.zeros((2, 16)))[1]
    assert got == -int(likelihood.sum()) / (16 * (len(stream) - 1))
    assert validator(model.nested(leaves)) == got


def test_many_documents_lie_side_by_side(monkeypatch):
    """Else the test above would prove little."""
    monkeypatch.setattr(validation, "SEGMENT", 8)
    assert validation.lay_out(as_array(STREAMS["many documents"])).tokens.shape == (25, 4)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=12).map(b"\0".join).filter(lambda s: len(s) > 1))
def test_lay_out_keeps_every_document_and_every_target(content):
    stream = as_array(content)
    rows = validation.lay_out(stream)
    time, width = rows.counted.shape
    assert rows.tokens.shape == (time + 1, width) and time % validation.SEGMENT == 0
    assert rows.counted.sum() == len(stream) - 1
    pairs = np.stack([rows.tokens[:-1][rows.counted], rows.tokens[1:][rows.counted]], axis=1)
    assert Counter(map(tuple, pairs.tolist())) == Counter(pairwise(content))
    documents = Counter()
    for column in range(width):
        used = int(rows.counted[:, column].sum())
        assert rows.counted[:used, column].all()
        row = rows.tokens[: used + 1, column].tobytes()
        assert row[:1] == b"\0" or content.startswith(row.split(b"\0")[0])  # the state is reset or still zero
        documents += Counter(filter(None, row.split(b"\0")))
    assert documents == Counter(filter(None, content.split(b"\0")))


def test_many_short_documents_waste_little():
    """Rows are at least a segment long, so that padding stays within about one segment a row."""
    stream = np.tile(np.array([0, 65, 66, 67, 68], np.uint8), 4000)
    rows = validation.lay_out(stream)
    assert rows.counted.sum() == len(stream) - 1
    assert rows.counted.size <= 2 * len(stream) + 2 * validation.SEGMENT
