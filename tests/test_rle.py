import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.ops import rle
from anymask.ops.rle import Rle
from pictures import dense_masks


def slow_runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, off first, one pixel at a time."""
    runs, value = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(dense_masks())
def test_encode_then_decode_is_the_same(masks):
    np.testing.assert_array_equal(rle.decode(rle.encode(masks), masks.shape[1:]), masks)


@given(dense_masks(st.integers(1, 1)), st.data())
def test_a_part_is_cut_out_of_the_whole(masks, data):
    h, w = masks.shape[1:]
    x0, y0 = data.draw(st.integers(0, w)), data.draw(st.integers(0, h))
    x1, y1 = data.draw(st.integers(x0, w)), data.draw(st.integers(y0, h))
    part = rle.decode_part(rle.encode(masks)[0], (x0, y0, x1, y1))
    np.testing.assert_array_equal(part, masks[0, y0:y1, x0:x1])


@given(dense_masks(st.integers(1, 2)))
def test_run_lengths_are_those_counted_one_by_one(masks):
    for mask, one in zip(masks, rle.encode(masks), strict=True):
        assert rle.run_lengths(one).tolist() == slow_runs(mask)
        assert rle.from_run_lengths(slow_runs(mask), mask.shape) == one


@given(dense_masks())
def test_areas_and_boxes_are_those_of_the_pixels(masks):
    packed = rle.encode(masks)
    assert rle.areas(packed).tolist() == [int(mask.sum()) for mask in masks]
    for mask, box in zip(masks, rle.boxes(packed), strict=True):
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        assert box.tolist() == expected


def test_there_may_be_more_than_255_masks():
    packed = rle.encode(np.ones((300, 2, 3), bool))
    assert rle.areas(packed).tolist() == [6] * 300 and rle.boxes(packed).shape == (300, 4)
    assert (rle.iou(packed, packed) == 1).all() and (rle.intersections(packed, packed) == 6).all()


@given(dense_masks(st.integers(0, 3)))
def test_iou_and_merge_are_those_of_the_pixels(masks):
    packed = rle.encode(masks)
    size = masks.shape[1:]
    overlap = rle.iou(packed, packed)
    assert overlap.shape == (len(masks), len(masks))
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            expected = (a & b).sum() / max((a | b).sum(), 1)
            assert overlap[i, j] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(rle.decode([rle.merge(packed, size)], size)[0], masks.any(axis=0))


@given(dense_masks(st.integers(0, 4)), st.data())
def test_the_smallest_is_on_top_and_of_equals_the_surest(masks, data):
    scores = np.asarray([data.draw(st.sampled_from([0.2, 0.5, 0.9])) for _ in masks], np.float32)
    top = rle.topmost(rle.encode(masks), scores, masks.shape[1:])
    for (y, x), row in np.ndenumerate(top):
        there = np.flatnonzero(masks[:, y, x])
        assert row == (max(there, key=lambda i: (-masks[i].sum(), scores[i], i)) + 1 if len(there) else 0)


def test_there_may_be_hundreds_of_masks():
    packed = rle.encode(np.ones((1, 4, 5), bool)) * 300
    assert rle.areas(packed).tolist() == [20] * 300
    assert rle.boxes(packed).shape == (300, 4)


def test_large_masks_have_large_runs():
    mask = np.zeros((1, 3000, 2000), bool)
    mask[0, 5:2990, 3:1990] = True
    assert rle.run_lengths(rle.encode(mask)[0]).sum() == 6_000_000


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "cover 5 x 5 = 25 pixels, got 0"),
        ("01", "cover 5 x 5 = 25 pixels, got 1"),
        ("zz", "no compressed RLE"),
        ("PP", "no compressed RLE"),
        (" ", "no compressed RLE"),
        ("oooooooo0", "beyond 32 bits"),
        ("é", "ascii"),
    ],
)
def test_counts_that_pycocotools_would_read_past_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        rle.run_lengths(Rle(size=[5, 5], counts=counts))


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=127), max_size=12))
def test_any_text_is_refused_or_decodes(counts):
    one = Rle(size=[3, 4], counts=counts)
    try:
        runs = rle.run_lengths(one)
    except ValueError:
        return
    assert rle.decode([one], (3, 4)).sum() == runs[1::2].sum()


@pytest.mark.wrong_types
@pytest.mark.parametrize("runs", [[3, 30], [26, -1], [25.0], [[25]], ["a"]])
def test_run_lengths_that_do_not_fill_the_size_are_refused(runs):
    with pytest.raises(ValueError, match="its (runs|counts) must"):
        rle.from_run_lengths(runs, (5, 5))


@st.composite
def parts(draw, n=2):
    """Masks, and a box within them."""
    masks = draw(dense_masks(st.integers(1, n)))
    _, h, w = masks.shape
    x0, y0 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
    return masks, (x0, y0, draw(st.integers(x0 + 1, w)), draw(st.integers(y0 + 1, h)))


@given(dense_masks(st.integers(0, 3)))
def test_intersections_are_those_of_the_pixels(masks):
    packed = rle.encode(masks)
    expected = [[int((a & b).sum()) for b in masks] for a in masks]
    assert rle.intersections(packed, packed).tolist() == expected
    assert rle.intersections(packed, []).shape == (len(masks), 0)


@given(parts())
def test_a_crop_and_a_window_are_what_lies_in_the_box(drawn):
    masks, box = drawn
    x0, y0, x1, y1 = box
    packed, outside = rle.encode(masks), np.ones(masks.shape[1:], bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(
        rle.decode(rle.crop(packed, box, outside.shape), outside.shape), np.where(outside, False, masks)
    )
    for mask, one in zip(masks, packed, strict=True):
        np.testing.assert_array_equal(rle.decode_part(one, box), mask[y0:y1, x0:x1])


@given(parts())
def test_a_placed_part_lies_where_it_was_cut_out(drawn):
    masks, (x0, y0, x1, y1) = drawn
    for mask in masks:
        whole = np.zeros_like(mask)
        whole[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
        part = rle.encode(mask[None, y0:y1, x0:x1])[0]
        assert rle.placed(part, (x0, y0), mask.shape) == rle.encode(whole[None])[0]


def test_a_part_that_leaves_the_image_is_refused():
    part = rle.encode(np.ones((1, 3, 4), bool))[0]
    with pytest.raises(ValueError, match="a mask of 4 x 3 pixels at 2,0 leaves the image of 5 x 3"):
        rle.placed(part, (2, 0), (3, 5))


def test_a_window_in_an_image_is_the_image_encoded():
    rng = np.random.default_rng(5)
    for _ in range(60):
        h, w = (int(side) for side in rng.integers(1, 12, 2))
        y0, x0 = int(rng.integers(0, h)), int(rng.integers(0, w))
        y1, x1 = int(rng.integers(y0, h)) + 1, int(rng.integers(x0, w)) + 1
        whole = np.zeros((1, h, w), bool)
        whole[0, y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.choice([0.0, 0.4, 1.0])
        assert rle.encode_window(whole[0, y0:y1, x0:x1], x0, y0, (h, w)) == rle.encode(whole)[0]


@given(dense_masks())
def test_distinct_leaves_the_first_of_masks_that_are_alike(masks):
    packed, left = rle.encode(masks), []
    for i, mask in enumerate(masks):
        if all((mask & masks[j]).sum() <= 0.5 * (mask | masks[j]).sum() for j in left):
            left.append(i)
    assert rle.distinct(packed, 0.5).tolist() == left
