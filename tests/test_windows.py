"""The detector of windows: planted maps, scorers that see a window as a whole, and pocket on a photo."""

import numpy as np
import pytest
from skimage import data

from anymask.grounding.pocket_scorer import PocketScorer
from anymask.grounding.protocol import Detections, DetectionThresholds, Detector
from anymask.grounding.windows import LONG_SIDE, MOST, WindowDetector, windows_of
from anymask.models.load import load
from anymask.types import Image
from test_peaks import blob

SIZE = (240, 320)
IMAGE = Image(np.zeros((*SIZE, 3), np.uint8))


class Planted:
    """Knows the whole image: a map of every name, of which a window shows a part, or if `whole` its mean there."""

    name, notes = "planted", ("a note",)

    def __init__(self, whole: bool = False, **maps: np.ndarray) -> None:
        self.maps, self.whole, self.asked = maps, whole, []

    def score_windows(self, image, windows, names):
        self.asked.append(list(names))
        grids = [np.stack([self.maps[name][y0:y1, x0:x1] for name in names]) for x0, y0, x1, y1 in windows]
        return [grid.mean(axis=(1, 2), keepdims=True) for grid in grids] if self.whole else grids

    def score_masks(self, image, masks, names):
        raise NotImplementedError


def iou(box, other):
    w, h = (max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - w * h
    return w * h / area


def test_planted_objects_get_their_boxes_and_names():
    cat = np.maximum(blob(60, 80, 16, 0.9, SIZE), blob(180, 240, 20, 0.6, SIZE))
    scorer = Planted(cat=cat, dog=blob(180, 60, 25, 0.8, SIZE), cow=blob(9, 9, 9, 0.1, SIZE))
    found = WindowDetector(scorer).detect(IMAGE, ["dog", "cow", "cat"])
    assert isinstance(found, Detections) and scorer.asked == [["dog", "cow", "cat"], ["dog", "cat"]]
    expected = {(80, 60, 16): "cat", (60, 180, 25): "dog", (240, 180, 20): "cat"}
    assert len(found) >= 3 and list(found.scores) == sorted(found.scores, reverse=True)
    for (x, y, spread), label in expected.items():
        half = spread * (2 * np.log(2)) ** 0.5
        best = max(range(len(found)), key=lambda i: iou(found.boxes[i], (x - half, y - half, x + half, y + half)))
        assert iou(found.boxes[best], (x - half, y - half, x + half, y + half)) > 0.75 and found.labels[best] == label
    assert "cow" not in found.labels
    assert found.nearest == pytest.approx({"dog": 0.8, "cow": 0.1, "cat": 0.9}, abs=0.03)
    assert found.maps.names == ("dog", "cow", "cat") and found.maps.probs.shape == (3, 72, LONG_SIDE)
    assert found.notes == ("a note",)


def test_two_that_touch_get_a_box_each_and_one_for_both():
    pair = np.maximum(blob(120, 120, 25, 0.9, SIZE), blob(120, 185, 25, 0.85, SIZE))
    found = WindowDetector(Planted(cat=pair), scales=(1,)).detect(IMAGE, ["cat"])
    both, left, right = sorted(found.boxes.tolist())
    assert left[2] <= right[0] + 4 and abs(left[2] - 152) < 6
    assert both[0] <= left[0] and both[2] >= right[2] and found.boxes[0].tolist() == left


@pytest.mark.parametrize(
    ("whole", "asked"), [(False, [["cat", "dog", "cow"], ["dog"]]), (True, [["cat", "dog", "cow"]] * 2)]
)
def test_smaller_windows_are_for_names_of_which_there_is_a_glimpse(whole, asked):
    flat = {name: np.full(SIZE, value, np.float32) for name, value in (("cat", 0.01), ("dog", 0.12), ("cow", 0.1))}
    scorer = Planted(whole, **flat)
    found = WindowDetector(scorer).detect(IMAGE, ["cat", "dog", "cow"])
    assert scorer.asked == asked and len(found) == 0
    assert found.nearest == pytest.approx({"cat": 0.01, "dog": 0.12, "cow": 0.1}, abs=1e-4)
    scorer = Planted(whole, cat=flat["cat"])
    assert WindowDetector(scorer).detect(IMAGE, ["cat"]).maps.probs.shape == (1, 72, LONG_SIDE)
    assert scorer.asked == [["cat"]] * (1 + whole)


def test_a_scorer_of_whole_windows_finds_where_it_is():
    spot = np.zeros(SIZE, np.float32)
    spot[150:230, 220:310] = 1
    found = WindowDetector(Planted(whole=True, cat=spot), scales=(1, 2, 3)).detect(IMAGE, ["cat"])
    assert iou(found.boxes[0], (220, 150, 310, 230)) > 0.3
    assert found.maps.probs[0, :30, :40].max() < found.maps.probs[0].max() / 2


def test_nothing_above_the_threshold_is_an_empty_result_that_says_what_came_nearest():
    detector = WindowDetector(Planted(cat=blob(120, 160, 30, 0.4, SIZE)))
    found = detector.detect(IMAGE, ["cat"], DetectionThresholds(box=0.5))
    assert len(found) == 0 and found.boxes.shape == (0, 4)
    assert found.nearest["cat"] == pytest.approx(0.4, abs=0.01)
    assert len(detector.detect(IMAGE, ["cat"])) >= 1
    assert detector.name == "windows of planted" and detector.thresholds.box == 0.15
    assert isinstance(detector, Detector)


def test_boxes_of_a_name_are_bounded():
    spots = np.random.default_rng(0).random((24, 32)).astype(np.float32)
    found = WindowDetector(Planted(cat=np.kron(spots, np.ones((10, 10), np.float32)))).detect(IMAGE, ["cat"])
    assert 10 < len(found) <= MOST
    assert (
        (found.boxes[:, 0] >= 0).all() and (found.boxes[:, 2] <= SIZE[1]).all() and (found.boxes[:, 3] <= SIZE[0]).all()
    )


@pytest.mark.parametrize("size", [(480, 640), (100, 640), (640, 100), (129, 128), (1, 900)])
def test_windows_cover_the_image_at_each_scale(size):
    for windows in windows_of(size, (1, 2, 3)):
        seen = np.zeros(size, int)
        for x0, y0, x1, y1 in windows:
            assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
            seen[y0:y1, x0:x1] += 1
        assert seen.min() == 1 or len(windows) > 1
        assert seen.min() >= 1
    assert windows_of(size, (1, 2))[0] == [(0, 0, size[1], size[0])]


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (60, 100), (126, 126)])
def test_a_small_image_has_the_whole_one_alone(size):
    assert windows_of(size, (1, 2, 3)) == [[(0, 0, size[1], size[0])]]
    found = WindowDetector(Planted(cat=np.full(size, 0.5, np.float32))).detect(
        Image(np.zeros((*size, 3), np.uint8)), ["cat"]
    )
    assert found.boxes.tolist() == [[0, 0, size[1], size[0]]]


def test_a_long_image_is_looked_through():
    image = Image(np.zeros((40, 3000, 3), np.uint8))
    spot = np.zeros((40, 3000), np.float32)
    spot[:, 2000:2300] = 0.8
    found = WindowDetector(Planted(cat=spot), scales=(1, 2, 3)).detect(image, ["cat"])
    assert iou(found.boxes[0], (2000, 0, 2300, 40)) > 0.7


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="scales are 1 for the whole image"):
        WindowDetector(Planted(), scales=(0, 1))
    with pytest.raises(ValueError, match="box threshold of windows of planted must be above 0 and at most 1, got 0"):
        WindowDetector(Planted(cat=np.zeros(SIZE))).detect(IMAGE, ["cat"], DetectionThresholds(box=0))


def test_pocket_finds_the_cat_and_the_same_again():
    image, scorer = Image(data.chelsea(), "chelsea"), PocketScorer(load("pocket"))
    found, again = (WindowDetector(scorer).detect(image, ["cat", "bicycle"]) for _ in range(2))
    best = max(
        iou(box, (20, 0, 430, 300)) for box, label in zip(found.boxes, found.labels, strict=True) if label == "cat"
    )
    assert best > 0.6
    assert found.nearest["cat"] > 0.5 > found.nearest["bicycle"]
    assert np.array_equal(found.boxes, again.boxes) and found.labels == again.labels
    cats = scorer.score_masks(image, np.stack([_box_mask((60, 20, 400, 290)), _box_mask((0, 0, 60, 60))]), ["cat"])[
        :, 0
    ]
    assert cats[0] > cats[1]


def _box_mask(box):
    mask = np.zeros((300, 451), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask
