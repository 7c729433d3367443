"""What survives in everything mode, rule by rule on logits drawn by hand: both ways give the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anymask.models.decode import Whole
from anymask.ops import rle
from anymask.sieve import ExactSieve, FastSieve, Limits
from anymask.types import Frame

SIZE = (300, 420)
LIMITS = Limits(predicted_iou=0.5, stability=0.6, stability_offset=1.0, box_nms=0.7)
FRAMES = {
    "padded": Frame.padded(SIZE, (1024, 1024)),
    "stretched": Frame.stretched(SIZE, (1024, 1024)),
    "small image": Frame.padded((31, 47), (1024, 1024)),
    "large image": Frame.padded((1100, 1500), (1024, 1024)),
}


def disks(frame, *some, slope=0.5, cells=256):
    """Low-resolution logits of disks x y r in shares of the crop; `slope` a cell."""
    down, across = (cells * side / whole for side, whole in zip(frame.content_size, frame.input_size, strict=True))
    y, x = torch.meshgrid(torch.arange(cells) + 0.5, torch.arange(cells) + 0.5, indexing="ij")
    return torch.stack([slope * (r * across - torch.hypot(x - a * across, y - b * down)) for a, b, r in some])


def sift(sieve, frame, logits, scores, limits=LIMITS):
    made = sieve(frame, limits)
    points = np.stack([np.arange(len(logits), dtype=float)] * 2, axis=1)
    made.add(points, Whole(torch.tensor(scores)[:, None], logits[:, None]))
    return made.masks()


def numbers(masks):
    """Which of the disks, in order."""
    return [] if masks.point_coords is None else masks.point_coords[:, 0].astype(int).tolist()


either = pytest.mark.parametrize("sieve", [ExactSieve, FastSieve])


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_the_fast_way_gives_the_masks_of_the_exact_one(frame):
    # the first two count as small, the others as large
    logits = disks(frame, (0.3, 0.4, 0.07), (0.6, 0.5, 0.12), (0.5, 0.5, 0.25), (0.9, 0.1, 0.4), (0.2, 0.8, 0.2))
    scores = [0.6, 0.7, 0.8, 0.9, 0.95]
    exact, fast = (sift(sieve, frame, logits, scores) for sieve in (ExactSieve, FastSieve))
    assert numbers(exact) == numbers(fast) == [4, 3, 2, 1, 0]
    np.testing.assert_allclose(fast.stability, exact.stability, atol=0.02)
    overlap = np.diagonal(rle.iou(fast.rles, exact.rles))
    assert overlap.min() > 0.97


@either
def test_limits_of_predicted_iou_and_stability(sieve):
    frame = FRAMES["stretched"]
    logits = disks(frame, (0.2, 0.5, 0.1), (0.5, 0.5, 0.1), (0.8, 0.5, 0.1))
    logits[2] /= 40
    assert numbers(sift(sieve, frame, logits, [0.5, 0.51, 0.9])) == [1]
    stable = replace(LIMITS, stability=0.0)
    assert numbers(sift(sieve, frame, logits, [0.5, 0.51, 0.9], stable)) == [2, 1]
    assert numbers(sift(sieve, frame, logits, [-0.1, 0.0, 0.9], replace(stable, predicted_iou=0.0))) == [2, 1, 0]
    offset = replace(LIMITS, stability_offset=0.02)
    assert numbers(sift(sieve, frame, logits, [0.5, 0.51, 0.9], offset)) == [2, 1]


@either
def test_stability_is_that_of_the_areas_of_two_disks(sieve):
    for radius in (0.1, 0.3):  # of a disk that counts as small, and of a large one
        frame = FRAMES["stretched"]
        found = sift(sieve, frame, disks(frame, (0.5, 0.5, radius)), [0.9])
        cells = radius * 256
        assert found.stability[0] == pytest.approx(((cells - 2) / (cells + 2)) ** 2, abs=0.01)


@either
def test_of_boxes_that_overlap_too_much_the_surest_stays(sieve):
    frame = FRAMES["stretched"]
    for radius in (0.1, 0.3):
        logits = disks(frame, (0.5, 0.5, radius), (0.5 + 0.1 * radius, 0.5, radius), (0.5, 0.5, 0.75 * radius))
        assert numbers(sift(sieve, frame, logits, [0.6, 0.9, 0.8])) == [1, 2]
        assert numbers(sift(sieve, frame, logits, [0.6, 0.9, 0.8], replace(LIMITS, box_nms=0.95))) == [1, 2, 0]
        assert numbers(sift(sieve, frame, logits, [0.6, 0.9, 0.8], replace(LIMITS, box_nms=0.3))) == [1]


@either
def test_boxes_are_compared_as_the_reference_does_ending_on_their_last_pixel(sieve):
    frame = FRAMES["small image"]
    logits = disks(frame, (0.5, 0.3, 0.12), (0.5, 0.3, 0.1), slope=2.0)
    ends = sift(sieve, frame, logits, [0.9, 0.8], replace(LIMITS, box_nms=1.0)).boxes
    sides = ends[:, 2:] - ends[:, :2]
    (inner, outer), (shorter, longer) = (np.sort(np.prod(one, axis=1)) for one in (sides, sides - 1))
    between = float(inner / outer + shorter / longer) / 2
    assert numbers(sift(sieve, frame, logits, [0.9, 0.8], replace(LIMITS, box_nms=between))) == [0, 1]


@either
def test_what_ends_at_an_edge_of_the_crop_and_not_of_the_image_is_dropped(sieve):
    frame = Frame.stretched((300, 840), (1024, 1024), (0, 0, 420, 300))
    for radius in (0.1, 0.2):
        ends = 1 + radius, 1.0, 0.964, 0.94  # 15 and 25 pixels before the crop's end
        logits = disks(frame, (0.0, 0.5, radius), *((end - radius, 0.5, radius) for end in ends))
        scores = [0.9, 0.8, 0.7, 0.6, 0.55]
        alike = replace(LIMITS, box_nms=1.0)
        assert numbers(sift(sieve, frame, logits, scores, alike)) == [0, 4]
        assert numbers(sift(sieve, frame, logits, scores, replace(alike, drop_cut=False))) == [0, 1, 2, 3, 4]


@either
def test_masks_lie_where_their_crop_lies(sieve):
    crop = (200, 50, 620, 350)
    frame = Frame.stretched((400, 840), (1024, 1024), crop)
    for radius in (0.1, 0.25):
        found = sift(sieve, frame, disks(frame, (0.5, 0.5, radius)), [0.9])
        x0, y0, x1, y1 = found.boxes[0]
        assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((410, 200), abs=1)
        assert (x1 - x0, y1 - y0) == pytest.approx((2 * radius * 420, 2 * radius * 300), abs=2)
        assert found.crop_boxes.tolist() == [list(crop)]


@either
def test_empty_masks_never_survive(sieve):
    frame = FRAMES["padded"]
    everything = replace(LIMITS, predicted_iou=0.0, stability=0.0)
    assert len(sift(sieve, frame, torch.full((2, 256, 256), -3.0), [0.9, 0.8], everything)) == 0
    pixels = Frame.stretched((2, 2), (1024, 1024))
    lost = disks(pixels, (0.25, 0.25, 0.1), (0.75, 0.25, 0.1), (0.25, 0.75, 0.1), (0.75, 0.75, 0.1)).amax(0)
    assert len(sift(sieve, pixels, -lost[None], [0.9], everything)) == 0  # on between the centres of pixels alone
