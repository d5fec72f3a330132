"""LOBSTER's files: what is written reads back the same, what is read is what the text says, bad rows are refused."""

import gzip
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.trading.lobster import MISSING, read_book, read_day, read_messages, write_book, write_messages
from eggroll.trading.messages import CROSS, DTYPES, HALT, LIMIT, MARKET, Messages, cut, joined, length

LARGEST = 2**31 - 1
ROW = "34200.004241176,1,16113575,18,5853300,1"
LEVELS = "5859400,200,5853300,18,5859800,200,5853000,150"
DAY = 86_400 * 10**9
quick = settings(deadline=None, max_examples=60)


def arrays(rows):
    columns = zip(*rows, strict=True) if rows else [()] * 6
    return Messages(*(np.array(column, dtype) for column, dtype in zip(columns, DTYPES, strict=True)))


orders = st.tuples(
    st.integers(LIMIT, CROSS),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, LARGEST),
    st.integers(0, LARGEST),
    st.sampled_from([1, -1]),
)
halts = st.tuples(st.just(HALT), st.just(0), st.just(0), st.integers(-1, 1), st.just(-1))
streams = st.lists(st.tuples(st.integers(0, DAY), orders | halts), min_size=1, max_size=20).map(
    lambda rows: arrays([(time, *rest) for time, (_, rest) in zip(sorted(row[0] for row in rows), rows, strict=True)])
)


@st.composite
def books(draw):
    levels = draw(st.integers(1, 4))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        prices = sorted(draw(st.sets(st.integers(1, LARGEST), min_size=2 * levels, max_size=2 * levels)))
        sizes = draw(st.lists(st.integers(1, 2**62), min_size=2 * levels, max_size=2 * levels))
        row = np.column_stack([prices[levels:], sizes[levels:], prices[levels - 1 :: -1], sizes[:levels]])
        row[levels - draw(st.integers(0, levels)) :, :2] = MISSING, 0
        row[levels - draw(st.integers(0, levels)) :, 2:] = -MISSING, 0
        rows.append(row)
    return np.array(rows, np.int64)


def refusal(read, path):
    with pytest.raises(UsageError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("expected ") and str(path) in message
    return message


def equal(one, other):
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---- round trips


@quick
@given(streams)
def test_messages_read_back_as_written(tmp_path_factory, messages):
    path = tmp_path_factory.getbasetemp() / "messages.csv"
    write_messages(path, messages)
    assert equal(read_messages(path), messages)


@quick
@given(books())
def test_books_read_back_as_written(tmp_path_factory, book):
    path = tmp_path_factory.getbasetemp() / "book.csv"
    write_book(path, book)
    read = read_book(path)
    assert read.dtype == np.int64 and np.array_equal(read, book)


def test_the_real_sample_is_written_byte_for_byte(shared, tmp_path):
    paths = sorted((shared / "data/lobster").glob("*_10.csv"))
    messages, book = read_day(*paths)
    assert length(messages) == len(book) == 999 and book.shape == (999, 10, 4)
    assert messages.time[0] == 34_200_004_241_176 and np.bincount(messages.kind).tolist() == [0, 471, 0, 369, 98, 61]
    write_messages(tmp_path / paths[0].name, messages)
    write_book(tmp_path / paths[1].name, book)
    for path in paths:  # whose last lines have no end
        assert (tmp_path / path.name).read_bytes() == path.read_bytes() + b"\n"


# ---- what the text says


def plain_nanoseconds(text):
    whole = re.fullmatch(r"[0-9]+(\.[0-9]{1,9})?", text)
    return int(Decimal(text) * 10**9) if whole else None


@quick
@given(st.integers(0, 86_399), st.text("0123456789", max_size=9))
def test_times_are_exact(tmp_path_factory, seconds, digits):
    path = tmp_path_factory.getbasetemp() / "time.csv"
    text = f"{seconds}.{digits}" if digits else f"{seconds}"
    path.write_text(f"{text},1,5,6,7,-1\n")
    assert read_messages(path).time.tolist() == [plain_nanoseconds(text)]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_it_stands(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    text = "\n".join([ROW, "34200.5,4,7,1,99,-1", "34201,7,0,0,-1,-1"]) + "\n"
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from([*"0189,.-+ e\n\0", ""]))
    text = text[:at] + new + text[at + data.draw(st.booleans()) :]
    path.write_text(text, newline="")
    try:
        messages = read_messages(path)
    except UsageError as error:
        assert "\n" not in str(error) and re.search(rf"in line [1-4] of {re.escape(str(path))}, got ", str(error))
        return
    rows = [line.split(",")[:6] for line in text.removesuffix("\n").split("\n")]
    assert messages.time.tolist() == [plain_nanoseconds(row[0]) for row in rows]
    assert np.stack(messages[1:], axis=1).tolist() == [[int(word) for word in row[1:]] for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", ",", ",null", ",MPID.1"])
def test_line_ends_and_a_seventh_column_do_not_matter(tmp_path, end, last):
    path = tmp_path / "m.csv"
    path.write_text(ROW + last + end + ROW + end + ROW + last, newline="")
    assert equal(read_messages(path), arrays([(34_200_004_241_176, 1, 16113575, 18, 5853300, 1)] * 3))


def test_parts_join_to_the_whole():
    messages = arrays([(time, 1, time, 5, 100, 1) for time in range(7)])
    assert equal(joined([cut(messages, 0, 3), cut(messages, 3, 3), cut(messages, 3, 7)]), messages)
    assert equal(joined([]), arrays([]))


# ---- refusals


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("34200.1,1,2,3,4", "6 to 7 columns in line 3 of"),
        ("34200.1,1,2,3,4,1,x,y", "6 to 7 columns in line 3 of"),
        ("", "6 to 7 columns in line 3 of"),
        ("time,kind,id,size,price,direction", "as time in line 3 of"),
        ("34200.1234567891,1,2,3,4,1", "seconds with at most 9 digits after the point as time in line 3 of"),
        ("34200.,1,2,3,4,1", "as time in line 3 of"),
        (".5,1,2,3,4,1", "as time in line 3 of"),
        ("3.4.2,1,2,3,4,1", "as time in line 3 of"),
        ("-34201,1,2,3,4,1", "as time in line 3 of"),
        ("3.42e4,1,2,3,4,1", "as time in line 3 of"),
        ("34201,1,,3,4,1", "a whole number of 64 bits as order id in line 3 of"),
        ("34201,1,9223372036854775808,3,4,1", "as order id in line 3 of"),
        ("34201,1,99999999999999999999999,3,4,1", "as order id in line 3 of"),
        ("34201,1,2,3.5,4,1", "as size in line 3 of"),
        ("34201,1,2,-,4,1", "as size in line 3 of"),
        ("34201,1,2, 3,4,1", "as size in line 3 of"),
        ("34201,1,2,+3,4,1", "as size in line 3 of"),
        ("34201,0,2,3,4,1", "a kind of 1 to 7 in line 3 of"),
        ("34201,8,2,3,4,1", "a kind of 1 to 7 in line 3 of"),
        ("34201,1,2,3,4,0", "a direction of 1 or -1 in line 3 of"),
        ("34201,1,2,-3,4,1", "a size of 0 to 2147483647 in line 3 of"),
        ("34201,1,2,2147483648,4,1", "a size of 0 to 2147483647 in line 3 of"),
        ("34201,1,2,3,2147483648,1", "a price of 0 to 2147483647 in line 3 of"),
        ("34201,1,2,3,-1,1", "a price of 0 to 2147483647 in line 3 of"),
        ("34201,7,2,3,2,-1", "a price of a halt of -1 to 1 in line 3 of"),
        ("34200.004241175,1,2,3,4,1", "a time not before that of the row above in line 3 of"),
        ("86400.000000001,1,2,3,4,1", "a time within 24 hours after midnight in line 3 of"),
        ("999999999.999999999,1,2,3,4,1", "a time within 24 hours after midnight in line 3 of"),
        ("34201,1,2,3,4,1\0", "plain text in line 3 of"),
    ],
)
def test_a_bad_message_is_refused_with_its_line(tmp_path, row, says):
    path = tmp_path / "m.csv"
    path.write_text("\n".join([ROW, ROW, row, ROW.replace("34200", "34299"), ""]))
    assert says in refusal(read_messages, path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("5,1,4,1,6,1,3", "8 columns in line 2 of"),
        ("5,1,4,1", "8 columns in line 2 of"),
        ("5,1,4,1,6,1,3,1,7,1,2,1", "8 columns in line 2 of"),
        ("5,1,4,1,6,1,3,nan", "a whole number of 64 bits as bid size 2 in line 2 of"),
        ("5,1,4,1,6.5,1,3,1", "a whole number of 64 bits as ask price 2 in line 2 of"),
        ("5,1,5,1,6,1,3,1", "an ask above the bid in line 2 of"),
        ("5,1,6,1,6,1,3,1", "an ask above the bid in line 2 of"),
        ("5,1,4,-1,6,1,3,1", "a size above 0 where there is a price"),
        ("5,1,4,0,6,1,3,1", "a size above 0 where there is a price"),
        ("5,1,4,1,9999999999,-1,3,1", "a size above 0 where there is a price"),
        ("5,1,4,1,9999999999,1,3,1", "a size above 0 where there is a price"),
        ("5,1,4,1,6,1,4,1", "prices that get worse from level to level in line 2 of"),
        ("6,1,4,1,5,1,3,1", "prices that get worse from level to level in line 2 of"),
        ("9999999999,0,4,1,5,1,3,1", "prices that get worse from level to level in line 2 of"),
        ("5,1,-9999999999,0,6,1,3,1", "prices that get worse from level to level in line 2 of"),
        ("5,1,0,1,6,1,-1,1", "a price of 1 to 2147483647 in line 2 of"),
        ("5,1,4,1,2147483648,1,3,1", "a price of 1 to 2147483647 in line 2 of"),
        ("-9999999999,0,4,1,6,1,3,1", "a price of 1 to 2147483647 in line 2 of"),
    ],
)
def test_a_bad_book_row_is_refused_with_its_line(tmp_path, row, says):
    path = tmp_path / "b.csv"
    path.write_text("\n".join([LEVELS, row, LEVELS, ""]))
    message = refusal(read_book, path)
    assert says in message and "in line 2 of" in message


def test_the_complaint_shows_what_stands_there(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"{ROW}\n34200.5,1,2,3,4,-2\n")
    assert refusal(read_messages, path) == (
        f"expected a direction of 1 or -1 in line 2 of {path}, got -2; give the file as LOBSTER made it, unpacked"
    )
    path.write_text(f"{ROW}\n34200.004,1,2,3,4,1\n")
    assert "got 34200.004; " in refusal(read_messages, path)
    path.write_text("6,1,4,1,5,1,3,1\n")
    assert "got 6 and then 5; " in refusal(read_book, path)


def test_columns_of_the_first_row_must_make_levels(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text("5,1,4,1,6\n")
    assert "4 columns for each level in line 1 of" in refusal(read_book, path)


@pytest.mark.parametrize("read", [read_messages, read_book])
def test_what_is_no_such_file_is_refused(tmp_path, read):
    assert "check the path" in refusal(read, tmp_path / "none.csv")
    assert "check the path" in refusal(read, tmp_path)
    (tmp_path / "empty.csv").touch()
    assert "got an empty file" in refusal(read, tmp_path / "empty.csv")
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(ROW.encode()))
    assert "expected plain text in line 1 of" in refusal(read, tmp_path / "m.csv.gz")


def test_lines_are_counted_over_blocks_of_a_long_file(tmp_path):
    path = tmp_path / "m.csv"
    lines = [ROW] * 60_000  # 2 MB
    path.write_text("\n".join(lines))
    assert length(read_messages(path)) == len(lines)
    for bad, says in (("34200.1,1,2,x,4,1", "as size"), (ROW[:-1] + "2", "a direction")):
        path.write_text("\n".join([*lines[:49_999], bad, *lines[50_000:]]))
        message = refusal(read_messages, path)
        assert says in message and "in line 50000 of" in message


def test_both_files_of_a_day_are_of_one_length(tmp_path):
    messages, book = tmp_path / "m.csv", tmp_path / "b.csv"
    messages.write_text(f"{ROW}\n{ROW}\n")
    book.write_text(f"{LEVELS}\n")
    assert "as many rows" in refusal(lambda path: read_day(path, book), messages)
    book.write_text(f"{LEVELS}\n{LEVELS}\n")
    day = read_day(messages, book)
    assert length(day.messages) == len(day.book) == 2 and read_day(messages).book is None


@pytest.mark.parametrize(
    "bad", [(7, MARKET, 1, 1, 5, 1), (7, LIMIT, 1, -1, 5, 1), (4, LIMIT, 1, 1, 5, 1), (7, LIMIT, 1, 1, 5, 0)]
)
def test_what_could_not_be_read_is_not_written(tmp_path, bad):
    path = tmp_path / "m.csv"
    path.write_text("before")
    with pytest.raises(UsageError, match=r"in message 1 for .*no such row"):
        write_messages(path, arrays([(5, LIMIT, 1, 1, 5, 1), bad]))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_written_are_refused(tmp_path):
    row = np.array([[[6, 1, 5, 1]]])
    with pytest.raises(UsageError, match="expected to write"):
        write_book(tmp_path / "none" / "b.csv", row)
    with pytest.raises(UsageError, match="at least one row"):
        write_book(tmp_path / "b.csv", row[:0])
    with pytest.raises(UsageError, match="at least one row"):
        write_messages(tmp_path / "m.csv", arrays([]))
    with pytest.raises(UsageError, match="an ask above the bid in row 1"):
        write_book(tmp_path / "b.csv", np.concatenate([row, row[..., [2, 1, 0, 3]]]))
    assert not list(tmp_path.iterdir())
