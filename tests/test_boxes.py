import numpy as np

from anymask.ops.boxes import jittered

BOXES = np.asarray([[10, 20, 50, 40], [0, 0, 100, 80], [99, 79, 100, 80]], np.float32)


def test_jittered_edges_move_by_a_share_of_their_side():
    many = np.repeat(np.asarray([[400, 450, 600, 500]], np.float64), 4000, axis=0)
    moved = jittered(many, 0.1, (1000, 1000), np.random.default_rng(0)) - many
    np.testing.assert_allclose(moved.std(axis=0), [20, 5, 20, 5], rtol=0.1)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=1)


def test_jittered_boxes_stay_boxes_of_the_image():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, y0, x1, y1 = jittered(BOXES, 0.8, (80, 100), rng).T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= 100).all() and (y1 <= 80).all()
        assert (x1 - x0 > 0.999).all() and (y1 - y0 > 0.999).all()


def test_no_jitter_changes_nothing_and_keeps_the_type():
    same = jittered(BOXES, 0.0, (80, 100), np.random.default_rng(0))
    np.testing.assert_array_equal(same, BOXES)
    assert same.dtype == np.float32
