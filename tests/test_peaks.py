"""Peaks of a map and the regions around them."""

import numpy as np
import pytest

from anymask.ops.peaks import Peak, find_peaks


def blob(y, x, spread, height=1.0, size=(40, 60)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (height * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))).astype(np.float32)


def test_one_blob_is_one_peak_with_the_box_of_its_half_height():
    [peak] = find_peaks(blob(20, 30, 4), 0.1)
    assert peak == Peak((30, 20), 1.0, box=(26, 16, 35, 25), whole=(25, 15, 36, 26))


def test_two_blobs_that_touch_are_two_and_share_no_cell():
    first, second = find_peaks(np.maximum(blob(20, 20, 5), blob(20, 32, 5, 0.8)), 0.1)
    assert first.point == (20, 20) and second.point == (32, 20)
    assert first.box[2] <= second.box[0] + 1 and 25 <= first.box[2] <= 28
    assert first.box[3] - first.box[1] == 11
    assert first.whole[0] <= first.box[0] and first.whole[2] >= second.box[2]


def test_touching_plateaus_with_noise_are_one():
    noisy = np.zeros((30, 40), np.float32)
    noisy[5:25, 5:35] = 0.9 + 0.004 * np.random.default_rng(0).random((20, 30))
    assert [peak.box for peak in find_peaks(noisy, 0.1)] == [(5, 5, 35, 25)]


def test_two_disks_joined_by_a_bridge_of_lower_ground():
    values = np.zeros((20, 50), np.float32)
    values[5:15, 5:20], values[9:11, 20:30], values[5:15, 30:45] = 0.8, 0.39, 0.8
    assert sorted(peak.box for peak in find_peaks(values, 0.1)) == [(5, 5, 20, 15), (30, 5, 45, 15)]
    assert {peak.whole for peak in find_peaks(values, 0.1)} == {(5, 5, 45, 15)}
    assert len(find_peaks(np.where(values == np.float32(0.39), np.float32(0.8), values), 0.1)) == 1


@pytest.mark.parametrize(("floor", "count"), [(0.1, 3), (0.3, 2), (0.6, 1), (1.0, 1), (1.01, 0)])
def test_peaks_below_the_floor_do_not_count(floor, count):
    values = np.maximum.reduce([blob(10, 10, 3), blob(10, 30, 3, 0.5), blob(30, 50, 3, 0.2)])
    found = find_peaks(values, floor)
    assert len(found) == count
    assert [peak.value for peak in found] == sorted((peak.value for peak in found), reverse=True)


def test_most_peaks_are_the_highest():
    values = np.maximum.reduce([blob(10, 10 + 12 * i, 2, 0.5 + 0.1 * i) for i in range(4)])
    assert [round(peak.value, 2) for peak in find_peaks(values, 0.1, most=2)] == [0.8, 0.7]


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_maps_of_any_size_and_flat_ones(size):
    [peak] = find_peaks(np.full(size, 0.5, np.float32), 0.2)
    assert peak.box == (0, 0, size[1], size[0]) and peak.value == 0.5
    assert find_peaks(np.zeros(size, np.float32), 0.2) == []
