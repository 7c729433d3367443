import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage

from anymask.data.labelmaps import (
    from_labelmap,
    read_labelmap,
    to_labelmap,
    voc_palette,
    write_indexed_png,
    write_labelmap,
)
from anymask.types import Masks
from pictures import assert_same, disjoint, results, sizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labelmaps")


@given(sizes.flatmap(lambda size: hnp.arrays(np.int32, size, elements=st.sampled_from([0, 1, 2, 7, 70000]))))
def test_a_label_map_is_its_values_one_by_one(labelmap):
    masks = from_labelmap(labelmap)
    ids = [i for i in np.unique(labelmap).tolist() if i]
    expected = Masks.from_dense(np.stack([labelmap == i for i in ids])) if ids else Masks.empty(labelmap.shape)
    assert masks.ids.tolist() == ids
    assert masks.rles == expected.rles
    np.testing.assert_array_equal(to_labelmap(masks), labelmap)


@given(results())
def test_objects_without_overlap_are_kept_by_every_file(folder, masks):
    kept = disjoint(masks)
    kept = kept[np.argsort(kept.ids)]
    write_labelmap(folder / "x.png", kept)
    write_labelmap(folder / "x.tif", kept)
    write_indexed_png(folder / "i.png", kept)
    for name in ("x.png", "x.tif", "i.png"):
        assert_same(read_labelmap(folder / name), kept, "ids")


def test_files_are_what_other_programs_expect(folder):
    masks = Masks.from_dense(np.eye(3, dtype=bool)[None], ids=[200])
    write_labelmap(folder / "a.png", masks)
    write_labelmap(folder / "a.tif", masks)
    write_indexed_png(folder / "b.png", masks)
    modes = {}
    for name in ("a.png", "a.tif", "b.png"):
        with PillowImage.open(folder / name) as picture:
            modes[name] = picture.mode
            assert np.asarray(picture).tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert modes == {"a.png": "I;16", "a.tif": "I", "b.png": "P"}
    with PillowImage.open(folder / "b.png") as picture:
        assert picture.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]


def test_the_palette_is_that_of_pascal_voc():
    def slow(index):
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> 0 & 1) << 7 - bit
            green |= (index >> 1 & 1) << 7 - bit
            blue |= (index >> 2 & 1) << 7 - bit
            index >>= 3
        return [red, green, blue]

    assert voc_palette().tolist() == [slow(i) for i in range(256)]


def test_small_objects_lie_on_large_ones_and_high_scores_on_low():
    dense = np.zeros((4, 3, 4), bool)
    dense[0, 0, 0], dense[1], dense[2, 2, :2], dense[3, 2, 1:3] = True, True, True, True
    masks = Masks.from_dense(dense, scores=[0.1, 0.9, 0.3, 0.4])
    assert to_labelmap(masks).tolist() == [[1, 2, 2, 2], [2, 2, 2, 2], [3, 4, 4, 2]]


def test_of_each_object_the_best_row_is_drawn():
    masks = Masks.from_dense(np.eye(2, dtype=bool)[:, None], scores=[0.2, 0.8], ids=[5, 5])
    assert to_labelmap(masks).tolist() == [[0, 5]]


def test_ids_that_do_not_fit_are_refused(folder):
    def masks(largest):
        return Masks.from_dense(np.ones((1, 1, 1), bool), ids=[largest])

    with pytest.raises(ValueError, match="an indexed PNG holds ids up to 255, got 256: use another format"):
        write_indexed_png(folder / "x.png", masks(256))
    with pytest.raises(ValueError, match=r"a \.png label map holds ids up to 65535, got 65536"):
        write_labelmap(folder / "x.png", masks(65536))
    with pytest.raises(ValueError, match="an int32 label map holds ids up to 2147483647"):
        to_labelmap(masks(2**31))
    with pytest.raises(ValueError, match=r"written as \.png, \.tif, \.tiff, got .*x\.jpg"):
        write_labelmap(folder / "x.jpg", masks(1))
    write_labelmap(folder / "big.tif", masks(2**31 - 1))
    assert read_labelmap(folder / "big.tif").ids.tolist() == [2**31 - 1]


@pytest.mark.wrong_types
def test_what_is_no_label_map_is_refused(folder):
    PillowImage.new("RGB", (2, 2)).save(folder / "rgb.png")
    with pytest.raises(
        ValueError, match=r"rgb\.png must be a label map, one integer channel, got a picture of mode RGB"
    ):
        read_labelmap(folder / "rgb.png")
    PillowImage.fromarray(np.asarray([[-1]], np.int32)).save(folder / "negative.tif")
    with pytest.raises(ValueError, match="must not hold negative ids, got -1"):
        read_labelmap(folder / "negative.tif")
    with pytest.raises(ValueError, match=r"must hold integers \(h, w\), got float64 \(2,\)"):
        from_labelmap(np.zeros(2))
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.png"):
        read_labelmap(folder / "none.png")
