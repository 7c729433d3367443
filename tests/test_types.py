import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymask.ops import rle
from anymask.types import Concept, Exemplar, Frame, Image, Masks, Prompt
from pictures import assert_same, results

COLUMNS = ("scores", "labels", "ids", "stability", "logits")
MASK = np.ones((2, 3), bool)


@given(results())
def test_packed_masks_are_the_dense_ones(masks):
    packed = Masks.from_rles(masks.rles, masks.size, **{name: getattr(masks, name) for name in COLUMNS})
    assert_same(packed, masks, *COLUMNS, "boxes", "areas")
    assert_same(masks.compact(), masks, *COLUMNS)


@given(results(), st.data())
def test_rows_are_picked_by_index_slice_list_and_bool(masks, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(masks), max_size=len(masks)))
    by_bool = masks[np.asarray(keep, bool)]
    by_list = masks[[i for i, kept in enumerate(keep) if kept]]
    assert_same(by_bool, by_list, *COLUMNS)
    assert len(by_bool) == sum(keep)
    for i, row in enumerate(masks):
        assert_same(row, masks[i : i + 1], *COLUMNS)
        np.testing.assert_array_equal(row.masks[0], masks.masks[i])


@given(results())
def test_concat_puts_rows_together_again(masks):
    if len(masks):
        assert_same(Masks.concat(list(masks)), masks, *COLUMNS)


@given(results())
def test_coco_rows_are_in_coco_units(masks):
    rows = masks.to_coco()
    for row, mask, box in zip(rows, masks.masks, masks.boxes, strict=True):
        assert row["area"] == mask.sum()
        assert row["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        np.testing.assert_array_equal(rle.decode([row["segmentation"]], masks.size)[0], mask)
    assert [row["id"] for row in rows] == masks.ids.tolist()
    assert [row["label"] for row in rows] == list(masks.labels)


@given(results())
def test_rows_named_are_those_of_one_label(masks):
    for name in {*masks.labels, "no label"}:
        rows = masks.rows_named(name)
        assert rows.dtype == bool
        assert rows.tolist() == [row.labels[0] == name for row in masks]


def test_best_keeps_the_highest_score_of_each_id_in_order_of_appearance():
    masks = Masks.from_dense(np.zeros((5, 2, 2), bool), scores=[0.1, 0.9, 0.5, 0.7, 0.6], ids=[4, 4, 2, 2, 4])
    best = masks.best()
    assert best.ids.tolist() == [4, 2]
    assert best.scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(Masks.empty((3, 4)).best()) == 0


def test_a_notebook_gets_a_picture_and_an_escaped_table():
    html = Masks.from_dense(MASK[None], labels=["<b>"])._repr_html_()
    assert "data:image/png;base64," in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<table>" in Masks.empty((4, 5))._repr_html_()


def test_prompts_combine():
    prompt = (
        Prompt.point(1.0, 2.0)
        + Prompt.points([(3.0, 4.0)], [0])
        + Prompt.box(0.0, 0.0, 5.0, 6.0)
        + Prompt.text("cat", ["dog"])
    )
    assert prompt.point_coords.tolist() == [[1, 2], [3, 4]]
    assert prompt.point_labels.tolist() == [1, 0]
    assert prompt.box_coords == (0, 0, 5, 6)
    assert (prompt.name, prompt.negative_names) == ("cat", ("dog",))
    assert prompt.is_spatial
    assert prompt.is_semantic
    assert not Prompt.text("cat").is_spatial
    assert not Prompt.mask(MASK).is_semantic


@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.lists(st.tuples(st.floats(-10, 500), st.floats(-10, 500)), max_size=5),
)
def test_a_frame_maps_there_and_back(size, points):
    xy = np.asarray(points, np.float32).reshape(-1, 2)
    for frame in (Frame.stretched(size, (384, 384)), Frame.stretched(size, (64, 96), (3, 2, 40, 60))):
        np.testing.assert_allclose(frame.to_original(frame.to_model(xy)), xy, atol=1e-2)
    corner = np.asarray([[size[1], size[0]]], np.float32)
    assert Frame.stretched(size, (64, 96)).to_model(corner)[0] == pytest.approx([96, 64], rel=1e-5)
    assert Frame.padded((300, 400), (1024, 1024)).content_size == (768, 1024)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: Image(np.zeros((2, 2), np.uint8)), ValueError, r"RGB uint8 \(h, w, 3\), got uint8 \(2, 2\)"),
        (lambda: Image(np.zeros((0, 2, 3), np.uint8)), ValueError, r"got uint8 \(0, 2, 3\)"),
        (lambda: Concept("a", "pocket", np.zeros((0, 4), np.float32)), ValueError, r"must be \(n, d\) with n, d > 0"),
        (Exemplar, ValueError, "give exactly one of them"),
        (lambda: Prompt.points([(1, 2)], [1, 0]), ValueError, "got 1 points and 2 labels"),
        (lambda: Prompt.point(1, 2, 3), ValueError, r"1 \(object\) or 0 \(background\), got \[3\]"),
        (lambda: Prompt.point(float("nan"), 2), ValueError, "must be finite"),
        (lambda: Prompt.box(5, 0, 5, 9), ValueError, "x1 > x0 and y1 > y0, got 5,0,5,9"),
        (lambda: Prompt.text(" "), ValueError, "got an empty text"),
        (lambda: Prompt.mask(np.zeros((2, 2), np.uint8)), ValueError, "got uint8"),
        (lambda: Prompt.box(0, 0, 1, 1) + Prompt.box(0, 0, 2, 2), ValueError, "one object has one box_coords"),
        (lambda: Prompt.refine(Masks.empty((2, 2))), ValueError, "got 0 rows"),
        (lambda: Masks.from_dense(np.zeros((1, 2, 2), np.uint8)), ValueError, r"must be bool \(n, h, w\)"),
        (lambda: Masks.from_dense(MASK[None], scores=[1, 2]), ValueError, "scores must have a value for each of the 1"),
        (lambda: Masks.from_dense(MASK[None], ids=[0]), ValueError, "ids must be positive"),
        (lambda: Masks.from_rles(rle.encode(MASK[None]), (3, 3)), ValueError, r"must have size \[3, 3\]"),
        (lambda: Masks.concat([Masks.empty((1, 1)), Masks.empty((1, 2))]), ValueError, "concat needs results of one"),
    ],
)
def test_wrong_values_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
