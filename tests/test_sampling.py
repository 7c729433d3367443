from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.ops.sampling import stratified

groups = st.lists(st.sampled_from("abcd"), min_size=1, max_size=40)


@given(groups, st.integers(1, 45), st.integers(0, 3))
def test_a_draw_is_in_order_and_grows_with_its_limit(held, limit, seed):
    drawn = stratified(held, limit, seed).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(limit, len(held))
    assert set(drawn) <= set(stratified(held, limit + 1, seed).tolist())
    assert drawn == stratified(held, limit, seed).tolist()


@given(groups, st.integers(4, 40))
def test_every_group_has_its_share(held, limit):
    """Within one of the exact share, apart from the first of every group."""
    sizes, drawn = Counter(held), Counter(held[i] for i in stratified(held, limit))
    for group, size in sizes.items():
        assert drawn[group] >= 1
        assert drawn[group] <= max(1, round(min(1, limit / len(held)) * size + 1))


def test_without_a_limit_all_are_taken():
    assert stratified(["a", "b", "a"], None).tolist() == [0, 1, 2]


def test_the_seed_changes_the_draw():
    assert stratified(["a"] * 50, 10, 0).tolist() != stratified(["a"] * 50, 10, 1).tolist()


def test_fewer_than_the_groups_takes_the_largest_groups():
    held = ["small"] + ["large"] * 5 + ["middle"] * 3
    assert {held[i] for i in stratified(held, 2)} == {"large", "middle"}


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        stratified(["a"], 0)
