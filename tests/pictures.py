"""What several tests draw from: random masks and results (hypothesis), and a small picture whose corners differ."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage

from anymask.types import Masks

# A, B, C, D: one colour for each quarter of a picture, so that every turn of it looks different.
QUARTERS = {"A": (250, 10, 10), "B": (10, 250, 10), "C": (10, 10, 250), "D": (240, 240, 10)}


def quarters(w: int = 24, h: int = 16) -> PillowImage.Image:
    """A B over C D."""
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[: h // 2, : w // 2], pixels[: h // 2, w // 2 :] = QUARTERS["A"], QUARTERS["B"]
    pixels[h // 2 :, : w // 2], pixels[h // 2 :, w // 2 :] = QUARTERS["C"], QUARTERS["D"]
    return PillowImage.fromarray(pixels)


def corners_of(pixels: np.ndarray) -> str:
    """The letters of the colours in the four corners, row by row."""
    named = []
    for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2)):
        distance = {name: np.abs(pixels[y, x].astype(int) - colour).sum() for name, colour in QUARTERS.items()}
        named.append(min(distance, key=lambda name: distance[name]))
    return "".join(named)


sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
labels = st.text(max_size=6)
numbers = st.floats(0, 1, width=32)
measured = st.sets(st.sampled_from(["text", "smoothness"]))


def dense_masks(n: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[np.ndarray]:
    """Bool arrays (n, h, w)."""
    count = st.integers(0, 4) if n is None else n
    return st.tuples(count, sizes).flatmap(lambda drawn: hnp.arrays(bool, (drawn[0], *drawn[1])))


@st.composite
def results(draw: st.DrawFn) -> Masks:
    """Masks with every column drawn, dense or packed, ids of their own."""
    dense = draw(dense_masks())
    n = len(dense)
    many = {"min_size": n, "max_size": n}
    masks = Masks.from_dense(
        dense,
        scores=draw(st.lists(numbers, **many)),
        labels=draw(st.lists(labels, **many)),
        ids=draw(st.lists(st.integers(1, 250), unique=True, **many)),
        stability=draw(st.none() | st.lists(numbers, **many).map(lambda drawn: np.asarray(drawn, np.float32))),
        logits=draw(st.none() | hnp.arrays(np.float32, (n, 2, 3), elements=st.floats(-30, 30, width=32))),
        point_coords=draw(st.none() | hnp.arrays(np.float32, (n, 2), elements=st.floats(0, 12, width=32))),
        crop_boxes=draw(st.none() | hnp.arrays(np.int64, (n, 4), elements=st.integers(0, 12))),
        measures={name: draw(hnp.arrays(np.float32, n, elements=numbers)) for name in draw(measured)},
    )
    return draw(st.sampled_from([masks, masks.compact()]))


def disjoint(masks: Masks) -> Masks:
    """The same rows without overlaps, empty masks dropped: what a label map can hold."""
    dense, taken = masks.masks.copy(), np.zeros(masks.size, bool)
    for mask in dense:
        mask &= ~taken
        taken |= mask
    kept = dense.any(axis=(1, 2))
    return Masks.from_dense(dense[kept], ids=masks.ids[kept])


def assert_same(first: Masks, second: Masks, *columns: str) -> None:
    """Equal masks, and equal values in the named columns."""
    assert first.size == second.size
    np.testing.assert_array_equal(first.masks, second.masks)
    for column in columns:
        one, other = getattr(first, column), getattr(second, column)
        assert (one is None) == (other is None), column
        if isinstance(one, dict):
            assert set(one) == set(other), column
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        elif one is not None:
            np.testing.assert_array_equal(one, other, err_msg=column)
