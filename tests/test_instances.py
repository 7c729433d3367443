"""Which finds are one object: the three rules, each by a picture that it is about, and negative names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.grounding.instances import one_each, united, why_missing, without
from anymask.types import Masks

SIZE = (40, 60)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(0, 20),
        st.integers(1, 30),
        st.integers(1, 30),
        st.floats(0, 1),
        st.sampled_from("ab"),
    ),
    max_size=7,
)


def boxes(*rows: tuple) -> Masks:
    """Rectangles x0 y0 x1 y1, score, label."""
    dense = np.zeros((len(rows), *SIZE), bool)
    for mask, (x0, y0, x1, y1, *_) in zip(dense, rows, strict=True):
        mask[y0:y1, x0:x1] = True
    return Masks.from_dense(dense, scores=[row[4] for row in rows], labels=[row[5] for row in rows])


def kept(*rows: tuple) -> list[int]:
    return one_each(boxes(*rows)).ids.tolist()


def test_of_two_that_are_the_same_the_surer_stays_whatever_its_name():
    assert kept((0, 0, 20, 20, 0.5, "cat"), (1, 0, 20, 20, 0.9, "dog")) == [2]
    assert kept((0, 0, 20, 20, 0.5, "cat"), (30, 0, 50, 20, 0.9, "cat")) == [1, 2]


def test_a_large_share_inside_another_is_the_same_object():
    assert kept((0, 0, 20, 20, 0.9, "cat"), (0, 0, 20, 9, 0.5, "dog")) == [1]


def test_a_small_part_has_a_name_of_its_own_but_not_that_of_the_whole():
    assert kept((0, 0, 40, 40, 0.9, "car"), (2, 2, 8, 8, 0.5, "wheel")) == [1, 2]
    assert kept((0, 0, 40, 40, 0.9, "car"), (2, 2, 8, 8, 0.5, "car")) == [1]


def test_what_is_made_of_others_of_its_name_is_a_group():
    pair = (0, 0, 20, 20, 0.6, "cat"), (20, 0, 40, 20, 0.5, "cat")
    assert kept((0, 0, 40, 20, 0.7, "cat"), *pair) == [2, 3]
    assert kept((0, 0, 40, 20, 0.7, "pair"), *pair) == [1]  # of another name: the same thing, and surer


def test_members_that_are_not_sure_make_no_group():
    assert kept((0, 0, 40, 20, 0.9, "cat"), (0, 0, 20, 20, 0.3, "cat"), (20, 0, 40, 20, 0.2, "cat")) == [1]


def test_one_part_alone_makes_no_group():
    assert kept((0, 0, 40, 20, 0.7, "cat"), (0, 0, 30, 20, 0.6, "cat")) == [1]


@given(ROWS)
def test_what_stays_needs_no_second_look(rows):
    masks = boxes(*[(x, y, x + w, y + h, score, label) for x, y, w, h, score, label in rows])
    first = one_each(masks)
    assert set(first.ids.tolist()) <= set(masks.ids.tolist())
    assert first.ids.tolist() == sorted(first.ids.tolist())
    if len(masks):
        assert len(first)  # the surest single one never goes with all others


@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter(rows, random):
    rows = [(x, y, x + w, y + h, score + i, label) for i, (x, y, w, h, score, label) in enumerate(rows)]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert sorted(one_each(boxes(*rows)).scores.tolist()) == sorted(one_each(boxes(*shuffled)).scores.tolist())


def test_a_surer_negative_takes_away_what_it_covers():
    wanted = boxes((0, 0, 20, 20, 0.5, "car"), (30, 0, 50, 20, 0.5, "car"))
    assert without(wanted, boxes((0, 0, 20, 20, 0.6, "toy"))).ids.tolist() == [2]
    assert without(wanted, boxes((0, 0, 20, 20, 0.4, "toy"))).ids.tolist() == [1, 2]
    assert without(wanted, boxes((15, 0, 25, 20, 0.9, "toy"))).ids.tolist() == [1, 2]
    assert without(wanted, Masks.empty(SIZE)) is wanted


def test_a_union_has_the_score_of_the_surest():
    masks = united(boxes((0, 0, 10, 10, 0.5, "a"), (20, 0, 30, 10, 0.7, "a"), (40, 0, 50, 10, 0.1, "b")))
    assert masks.labels == ("a", "b") and masks.areas.tolist() == [200, 100]
    assert masks.scores.tolist() == pytest.approx([0.7, 0.1]) and masks.ids.tolist() == [1, 2]
    assert len(united(Masks.empty(SIZE))) == 0


def test_why_a_name_is_missing_is_said_in_words_that_follow_it():
    assert why_missing(0.021, 0.62) == "0.02 of 0.62"
    assert why_missing(0.021, 0.62, "toy") == "0.02 of 0.62"
    assert why_missing(0.62, 0.62, "toy") == "taken by 'toy'"
    assert why_missing(0.62, 0.62) == "there, but no mask of it is sure enough"
