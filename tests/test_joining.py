"""Masks of tiles joined: random scenes cut by a perfect segmenter must come out as they were."""

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anymask.joining import join
from anymask.ops import rle
from anymask.tiling import tiles
from anymask.types import Masks
from scenes import found_as, scene, seen

SIZE = (200, 330)
WHOLE = (0, 0, SIZE[1], SIZE[0])
LEFT, MIDDLE, RIGHT = (0, 0, 130, 200), (100, 0, 230, 200), (200, 0, 330, 200)


def rectangle(x0, y0, x1, y1, size=SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def joined(truth, crops=(LEFT, MIDDLE, RIGHT), **options) -> Masks:
    return join([(crop, seen(truth, crop, **options)) for crop in crops], SIZE)


def assert_exactly(result: Masks, truth) -> None:
    assert len(result) == len(truth)
    assert sorted(one["counts"] for one in result.rles) == sorted(one["counts"] for one in rle.encode(np.stack(truth)))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_a_scene_cut_into_tiles_comes_out_as_it_was(seed, in_pieces, with_whole):
    """Whether a tile says one mask an object, or one for each part of it that it sees."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(40, 220)), int(rng.integers(40, 220)))
    tile = int(rng.integers(64, 130))
    crops = tiles(size, tile, int(rng.integers(6, tile * 3 // 4)))
    truth = scene(rng, size, int(rng.integers(1, 8)))
    assume(truth)
    parts = [(crop, seen(truth, crop, in_pieces=in_pieces)) for crop in crops]
    if with_whole and len(crops) > 1:
        whole = (0, 0, size[1], size[0])
        parts.insert(0, (whole, seen(truth, whole)))
    result = join(parts, size)
    assert len(result) == len(truth)
    assert all(iou == 1 for iou in found_as(result, truth))


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_noisy_masks_still_come_together(seed):
    """Shrunk, grown or jagged by up to three pixels, unlike in every tile: nothing is lost, next to nothing added."""
    rng = np.random.default_rng(seed)
    truth = [mask for mask in scene(rng, (300, 400), 6) if cv2.erode(mask.astype(np.uint8), np.ones((15, 15))).any()]
    if truth:
        parts = [
            (crop, seen(truth, crop, spoil=lambda mask: _spoilt(mask, rng))) for crop in tiles((300, 400), 160, 40)
        ]
        result = join(parts, (300, 400))
        assert len(truth) <= len(result) <= len(truth) + 1
        assert min(found_as(result, truth)) > 0.6


def _spoilt(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pixels, kernel = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    h, w = mask.shape
    small = cv2.resize(pixels, (w // 3, h // 3), interpolation=cv2.INTER_AREA)
    jagged = cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST)
    eroded = cv2.erode(pixels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)  # short of the seam too
    return [eroded, cv2.dilate(pixels, kernel), jagged][rng.integers(3)].astype(bool)


def test_an_object_over_three_tiles_is_one():
    assert_exactly(joined([rectangle(20, 80, 310, 120)]), [rectangle(20, 80, 310, 120)])


def test_objects_that_touch_stay_apart():
    """Along a seam, across it, and side by side over all tiles."""
    along = [rectangle(40, 20, 130, 60), rectangle(130, 20, 220, 60)]
    across = [rectangle(10, 90, 300, 110), rectangle(10, 110, 300, 130)]
    assert_exactly(joined(along + across), along + across)


def test_an_object_bent_out_of_a_tile_and_back_is_one():
    bent = rectangle(40, 20, 180, 40) | rectangle(160, 20, 180, 160) | rectangle(40, 140, 180, 160)
    two = joined([bent], crops=[(0, 0, 140, 200)], in_pieces=True)
    assert len(two) == 2
    assert_exactly(joined([bent], in_pieces=True), [bent])


def test_two_ends_that_no_tile_sees_connected_stay_two():
    """The middle tile lists both as one, but they touch nowhere."""
    ends = [rectangle(10, 20, 180, 40), rectangle(10, 100, 180, 120)]
    result = join([(LEFT, seen(ends, LEFT)), (MIDDLE, seen([ends[0] | ends[1]], MIDDLE))], SIZE)
    assert sorted(rle.areas(rle.crop(result.rles, (0, 0, 50, 200), SIZE)).tolist()) == [0, 800, 800]


def test_objects_inside_each_other_are_told_apart_where_only_the_outer_differs():
    """In the overlap of the tiles both look alike."""
    outer, inner = rectangle(20, 20, 300, 180), rectangle(60, 20, 180, 180)
    parts = [(LEFT, [inner, outer]), (MIDDLE, [outer, inner]), (RIGHT, [inner, outer])]
    assert_exactly(join([(crop, seen(order, crop)) for crop, order in parts], SIZE), [inner, outer])


def test_the_same_object_in_two_tiles_is_the_surer_one():
    mask = rectangle(105, 50, 125, 70)
    parts = [(crop, seen([mask], crop)) for crop in (LEFT, MIDDLE)]
    grown = seen([rectangle(104, 50, 125, 70)], MIDDLE)
    parts[1] = (MIDDLE, Masks.from_rles(grown.rles, SIZE, scores=[0.9], stability=np.float32([0.7])))
    parts[0] = (LEFT, Masks.from_rles(parts[0][1].rles, SIZE, scores=[0.8], stability=np.float32([0.5])))
    result = join(parts, SIZE)
    assert result.boxes.tolist() == [[104, 50, 125, 70]]
    assert result.scores == pytest.approx([0.9]) and result.stability == pytest.approx([0.7])


def test_a_large_object_comes_from_the_whole_image():
    """Tiles that see it differently, each cut, give way to it; what they see whole does not."""
    large, small = rectangle(5, 5, 325, 195), rectangle(40, 40, 60, 60)
    strips = [rectangle(5, 60 * i + 5, 200, 60 * i + 30) for i in range(3)]
    parts = [(WHOLE, seen([large], WHOLE)), (LEFT, seen([small, *strips], LEFT)), (MIDDLE, Masks.empty(SIZE))]
    assert_exactly(join(parts, SIZE), [large, small])


def test_a_coarse_mask_gives_way_to_a_whole_one_and_replaces_a_cut_one():
    whole, cut = rectangle(30, 30, 80, 80), rectangle(60, 120, 260, 160)
    coarse = [rectangle(26, 26, 84, 84), rectangle(58, 118, 262, 162)]
    parts = [(WHOLE, seen(coarse, WHOLE)), (LEFT, seen([whole, cut], LEFT))]
    assert_exactly(join(parts, SIZE), [whole, coarse[1]])


def test_a_coarse_mask_never_brings_two_objects_together():
    two = [rectangle(40, 40, 165, 80), rectangle(165, 40, 290, 80)]
    parts = [(WHOLE, seen([two[0] | two[1]], WHOLE)), *((crop, seen(two, crop)) for crop in (LEFT, MIDDLE, RIGHT))]
    assert_exactly(join(parts, SIZE), two)


def test_a_cut_mask_that_another_tile_knows_better_is_dropped_and_else_kept():
    known, unknown = rectangle(110, 20, 130, 40), rectangle(20, 100, 130, 140)
    parts = [(LEFT, seen([known, unknown], LEFT)), (MIDDLE, Masks.empty(SIZE)), (RIGHT, Masks.empty(SIZE))]
    assert_exactly(join(parts, SIZE), [unknown])


def test_without_cut_masks_what_is_whole_joined_or_coarse_is_left():
    whole, over, large, cut = (
        rectangle(20, 10, 50, 30), rectangle(30, 40, 290, 60), rectangle(5, 70, 325, 130), rectangle(20, 150, 130, 190)
    )  # fmt: skip
    parts = [(crop, seen([over], crop)) for crop in (MIDDLE, RIGHT)]
    parts += [(WHOLE, seen([large], WHOLE)), (LEFT, seen([whole, over, large, cut], LEFT))]
    assert_exactly(join(parts, SIZE), [whole, over, large, cut])
    assert_exactly(join(parts, SIZE, drop_cut=True), [whole, over, large])
    assert len(join([(LEFT, seen([cut], LEFT))], SIZE, drop_cut=True)) == 0


def test_a_union_that_ends_straight_at_a_seam_is_cut():
    """Two masks agree in the strip that both tiles see, but at the border of one the other has ended."""
    left, middle = rectangle(20, 20, 130, 180), rectangle(100, 20, 120, 180)
    parts = [(LEFT, seen([left], LEFT)), (MIDDLE, seen([middle], MIDDLE))]
    assert len(join(parts, SIZE, drop_cut=True)) == 0
    most = middle | rectangle(120, 20, 131, 120)  # goes on where most of the other ends
    parts[1] = (MIDDLE, seen([most], MIDDLE))
    assert_exactly(join(parts, SIZE, drop_cut=True), [left | most])


def test_labels_are_never_joined_across_names():
    mask = rectangle(20, 80, 310, 120)
    names = {LEFT: "cat", MIDDLE: "dog", RIGHT: "cat"}
    result = join([(crop, seen([mask], crop, labels=[name])) for crop, name in names.items()], SIZE)
    assert sorted(result.labels) == ["cat", "cat", "dog"]
    assert joined([mask, mask], labels=["cat", "dog"]).labels == ("cat", "dog")


def test_nothing_in_some_or_all_tiles():
    mask = rectangle(210, 20, 240, 40)
    assert_exactly(join([(LEFT, Masks.empty(SIZE)), (RIGHT, seen([mask], RIGHT))], SIZE), [mask])
    assert len(join([(LEFT, Masks.empty(SIZE))], SIZE)) == len(join([], SIZE)) == 0
    assert join([], SIZE).size == SIZE


def test_the_last_tile_is_not_lost():
    size, corner = (131, 257), rectangle(255, 129, 257, 131, (131, 257))
    crops = tiles(size, 128, 16)
    result = join([(crop, seen([corner], crop)) for crop in crops], size)
    assert result.areas.tolist() == [4]
