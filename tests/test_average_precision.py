"""Average precision is that of pycocotools, and a draw that counts an image twice is a set that has it twice."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from anymask.ops import rle
from anymask.ops.average_precision import IOU_THRESHOLDS, MOST_DETECTIONS, average_precision, match

SIDE, NAMES = 16, ("cat", "dog", "never there", "only in crowds")


def blocks(rng, n):
    """Masks of few sizes and places, so that equal ones and IoUs that lie on a threshold are frequent."""
    masks = np.zeros((n, SIDE, SIDE), bool)
    for mask in masks:
        (x, y), (w, h) = rng.integers(0, 4, 2) * 4, rng.integers(1, 9, 2)
        mask[y : y + h, x : x + w] = True
    return list(rle.encode(masks))


def random_images(rng, images, most):
    """Of each image the names asked, each with detections, scores, objects and crowds."""
    found = []
    for _ in range(images):
        asked = [name for name in NAMES if rng.random() < 0.7]
        rows = {}
        for name in asked:
            truth = blocks(rng, int(rng.integers(0, 6)) if name in NAMES[:2] else 0)
            crowds = blocks(rng, int(name == NAMES[3] or rng.random() < 0.2))
            answers = blocks(rng, int(rng.integers(0, most)))
            rows[name] = answers, np.round(rng.random(len(answers)), 1), truth, crowds
        found.append(rows)
    return found


def of_pycocotools(images):
    truth, answers = [], []
    for i, rows in enumerate(images):
        for name, (detections, scores, objects, crowds) in rows.items():
            place = {"image_id": i + 1, "category_id": NAMES.index(name) + 1}
            for one, iscrowd in [*((one, 0) for one in objects), *((one, 1) for one in crowds)]:
                area = int(rle.areas([one])[0])
                row = {"id": len(truth) + 1, "segmentation": one, "area": area, "iscrowd": iscrowd}
                truth.append(place | row | {"bbox": [0, 0, 1, 1]})
            answers += [
                place | {"segmentation": one, "score": float(s)} for one, s in zip(detections, scores, strict=True)
            ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(images))],
            "annotations": truth,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(answers), "segm")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, names; all areas, 100 detections
    return [row[row > -1].mean() for row in precision]


def matched(images):
    return [{name: match(*row) for name, row in rows.items()} for rows in images]


@pytest.mark.parametrize(("seed", "images", "most"), [(0, 12, 8), (4, 3, 30), (2, 6, 130), (3, 30, 3)])
def test_it_is_that_of_pycocotools(seed, images, most):
    rows = random_images(np.random.default_rng(seed), images, most)
    ours = average_precision(matched(rows))
    assert ours.shape == (1, len(IOU_THRESHOLDS))
    np.testing.assert_allclose(ours[0], of_pycocotools(rows), atol=1e-9, rtol=0)
    assert 0 < ours.mean() < 1


def test_weights_are_a_multiset_of_images():
    rng = np.random.default_rng(5)
    images = random_images(rng, 7, 8)
    for i, rows in enumerate(images):  # without ties, whose order is that of the images
        for name, (detections, _, objects, crowds) in rows.items():
            rows[name] = detections, rng.random(len(detections)) + i, objects, crowds
    counts = rng.integers(0, 3, (4, len(images))).astype(float)
    drawn = average_precision(matched(images), counts)
    for row, ap in zip(counts, drawn, strict=True):
        several = [images[i] for i, count in enumerate(row) for _ in range(int(count))]
        np.testing.assert_allclose(ap, average_precision(matched(several))[0], atol=1e-12, rtol=0)


def test_perfect_answers_reach_one_and_nothing_to_find_is_not_a_number():
    objects = blocks(np.random.default_rng(0), 1)
    assert (average_precision([{"cat": match(objects, np.ones(1), objects)}]) == 1).all()
    assert np.isnan(average_precision([{"cat": match(objects, np.ones(1), [])}, {}])).all()
    assert np.isnan(average_precision([])).all()
    assert (average_precision([{"cat": match([], np.zeros(0), objects)}]) == 0).all()


def test_only_the_surest_detections_count():
    [good] = rle.encode(np.ones((1, SIDE, SIDE), bool))
    [bad] = rle.encode(np.eye(SIDE, dtype=bool)[None])
    scores = np.linspace(1, 0.5, MOST_DETECTIONS + 1)
    late = match([bad] * MOST_DETECTIONS + [good], scores, [good])
    assert len(late.scores) == MOST_DETECTIONS
    assert not late.right.any()
