"""A folder that shows concepts: figures with their numbers, with and without a mask, of one concept and of several."""

import json
from dataclasses import replace

import numpy as np
import pytest

from anymask.adapting.charts import Bars, draw_bars, draw_matrices
from anymask.adapting.inspection import SHARES, Inspection
from anymask.adapting.records import save_figure
from anymask.data.images import read_image
from tiny_sam3 import tiny_sam3, write_tiny_merges
from word_galleries import concept_of, disk_gallery


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    return disk_gallery(folder, 1, tiny_sam3(write_tiny_merges(folder)))


@pytest.fixture(scope="module")
def concepts(gallery):
    return [concept_of(gallery.space, words, words) for words in ("red car", "red red dog", "car")]


def test_all_is_written_with_its_numbers(gallery, concepts, tmp_path):
    found = Inspection(gallery, concepts, has_truth=True).write(tmp_path)
    names = ["similarity", "interpolation", "sensitivity"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}.{s}" for n in names for s in ("png", "json")
    )
    for name in names:
        kept = json.loads((tmp_path / f"{name}.json").read_bytes())
        assert kept == json.loads(json.dumps(found[name]))
        figure = read_image(tmp_path / f"{name}.png")
        assert min(figure.size) > 100 and figure.pixels.std() > 5
    rows = found["interpolation"]
    assert [row["share"] for row in rows] == [*SHARES, *SHARES]
    assert rows[0]["from"] == "red car" and rows[-1]["to"] == "car" and all(0 <= row["iou"] <= 1 for row in rows)
    assert rows[len(SHARES) - 1]["pixels"] == rows[len(SHARES)]["pixels"]  # both are the second concept
    assert [len(row["vectors"]) for row in found["sensitivity"]] == [2, 3, 1]
    assert found["similarity"]["names"] == ("red car", "red red dog", "car")


def test_one_concept_without_a_mask_agrees_with_itself(gallery, concepts, tmp_path):
    found = Inspection(gallery, concepts[:1], has_truth=False).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sensitivity.json", "sensitivity.png"]
    assert list(found) == ["sensitivity"] and found["sensitivity"][0]["iou"] == 1


def test_without_a_mask_a_mixture_has_no_iou(gallery, concepts, tmp_path):
    rows = Inspection(gallery, concepts[:2], has_truth=False).write(tmp_path)["interpolation"]
    assert all(row["iou"] is None for row in rows) and len({row["pixels"] for row in rows}) > 1


@pytest.mark.parametrize(("images", "count"), [(0, 1), (2, 1), (1, 0)])
def test_an_inspection_is_of_one_image(gallery, concepts, images, count):
    several = replace(gallery, pairs=list(gallery.pairs) * images)
    with pytest.raises(ValueError, match=f"needs one image and at least one concept, got {images} and {count}"):
        Inspection(several, concepts[:count], has_truth=True)


# --- the figures


def drawn(figure, path) -> np.ndarray:
    return read_image(save_figure(path / "figure.png", figure)).pixels


def test_like_is_darker_than_unlike(tmp_path):
    near, far = (
        drawn(draw_matrices(["a", "b"], {"cosine": np.asarray([[1, v], [v, 1.0]])}), tmp_path) for v in (0.9, 0.0)
    )
    assert near.shape == far.shape and near.mean() < far.mean()


def test_longer_bars_colour_more(tmp_path):
    def coloured(value):
        figure = draw_bars([Bars("c", ["1 fox"], {"left out": [value], "instead": [0.0]}, 0.5)], "IoU")
        return int((drawn(figure, tmp_path) == (0x5C, 0x6C, 0x8C)).all(axis=2).sum())

    assert coloured(1.0) > 1.5 * coloured(0.5) and coloured(None) < coloured(0.5)
