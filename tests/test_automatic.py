"""Everything mode: `exact` is the reference record for record, the default finds the same, and no click is lost."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from transformers import SamImageProcessor, pipeline

import anymask
from anymask import automatic, automatic_settings, prompting
from anymask.automatic import collect, everything, everything_steps, to_records
from anymask.automatic_settings import AutomaticSettings
from anymask.models import sam2_keys
from anymask.models.sam2 import Sam2
from anymask.ops import boxes, cleaning, rle
from anymask.types import Image, Masks
from disks import disk_sam, disk_sam2
from originals import SIDE, picture, sam_package
from test_mobile import converted
from test_sam2 import original as original_sam2
from tiny import tiny_model
from tiny_families import tiny_edgetam, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text

H, W = 240, 388
IMAGE = picture((H, W))  # so large that a pixel that a rounding turns over changes no stability by 1e-3
SURE = {"points_per_side": 6, "pred_iou_thresh": 0.75, "stability_score_thresh": 0.6}
OTHERS = (tiny_sam, tiny_sam_hq, tiny_sam2, tiny_edgetam, tiny_sam3, tiny_model)
OPEN = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}  # random weights are unsure
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    original = disk_sam(IMAGE)
    return original, converted(original, tmp_path_factory.mktemp("disks") / "tiny.pt", "vit_t")


@pytest.fixture(scope="module")
def model(pair):
    return pair[1]


@pytest.fixture(scope="module")
def pair_of_sam2():
    """The generator of the sam2 package for some settings, and our model with the same weights."""
    with pytest.MonkeyPatch.context() as patch:
        wide = replace(sam2_keys.SIZES["nano"], hidden_size=256)  # a narrow decoder draws no disks
        patch.setitem(sam2_keys.SIZES, "nano", wide)
        network = original_sam2("hiera_nano_2.1")
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        def generator(**settings):
            with pytest.warns(FutureWarning, match=r"torch\.jit\.script"):
                made = SAM2AutomaticMaskGenerator(network, **settings)
            made.predictor._bb_feat_sizes = [(network.image_size // stride,) * 2 for stride in (4, 8, 16)]
            return made

        disk_sam2(IMAGE, generator().predictor)
        state = network.state_dict()
        ours = Sam2.from_original(state, "hiera_nano_2.1", Path("x.pt"), "cpu", torch.float32, "nano")
    return generator, ours


SETTINGS = (
    {},
    {"points_per_batch": 5},
    {"crop_n_layers": 1},
    {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.5},
    {"crop_n_layers": 1, "crop_overlap_ratio": 0.1, "box_nms_thresh": 0.9},
    {"min_mask_region_area": 800},
    {"crop_n_layers": 1, "crop_overlap_ratio": 0.2, "min_mask_region_area": 400, "box_nms_thresh": 0.4},
    {"stability_score_offset": 3.0, "box_nms_thresh": 0.95},
)


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_exact_gives_the_records_of_segment_anything(pair, changes):
    original, model = pair
    assert_exact(model, partial(sam_package().SamAutomaticMaskGenerator, original), changes)


@pytest.mark.parametrize("changes", [{"box_nms_thresh": 0.95}, {"crop_n_layers": 1}], ids=str)
def test_exact_gives_the_records_of_sam2(pair_of_sam2, changes):
    generator, model = pair_of_sam2
    assert_exact(model, generator, changes)


def assert_exact(model, generator, changes):
    """The same masks in the same order, with the same values, as the generator of an original package makes."""

    def reference(**settings):
        with torch.no_grad():
            return generator(points_per_side=6, **settings).generate(IMAGE.pixels)

    thresholds = clear_thresholds(reference(**changes | {**ALL, "min_mask_region_area": 0}))
    theirs = reference(**changes, **thresholds)
    ours = everything(
        IMAGE, model=model, points_per_side=6, exact=True, output_mode="binary_mask", **changes, **thresholds
    )
    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert iou(one["segmentation"], other["segmentation"]) >= 0.99
        assert one["area"] == one["segmentation"].sum()
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-3)
        assert one["stability_score"] == pytest.approx(other["stability_score"], abs=1e-3)
        np.testing.assert_allclose(one["point_coords"], other["point_coords"], atol=1e-4)
        assert one["crop_box"] == other["crop_box"]
        ends = np.asarray(one["bbox"]) - other["bbox"]
        assert ends.tolist() == [0, 0, 1, 1]  # the reference's boxes end on the last pixel


def clear_thresholds(records):
    """Thresholds that a good part of the records do not pass, and that no rounding takes a record across."""
    scores, stable = (np.asarray([one[name] for one in records]) for name in ("predicted_iou", "stability_score"))
    least = in_widest_gap(scores, 0.2, 0.4)
    return {"pred_iou_thresh": least, "stability_score_thresh": in_widest_gap(stable[scores > least], 0.2, 0.5)}


def in_widest_gap(values, low, high):
    """The middle of the widest gap between neighbours, from one quantile to the other."""
    values = np.sort(values[values > 0])
    values = values[int(low * len(values)) : int(high * len(values))]
    widest = np.diff(values).argmax()
    return float(values[widest : widest + 2].mean())


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def test_exact_gives_the_masks_of_the_pipeline_of_transformers(model):
    processor = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    generator = pipeline("mask-generation", model=model.network, image_processor=processor, device="cpu")
    found = everything(IMAGE, model=model, points_per_side=6, exact=True, **ALL)
    records = to_records(found)
    settings = {**clear_thresholds(records), "points_per_crop": 6, "crops_nms_thresh": 0.7}
    theirs = generator(PillowImage.fromarray(IMAGE.pixels), points_per_batch=36, **settings)
    ours = everything(IMAGE, model=model, exact=True, **settings)
    assert len(ours) == len(theirs["masks"]) > 10
    np.testing.assert_allclose(ours.scores, theirs["scores"], atol=1e-3)
    for one, other in zip(ours.masks, theirs["masks"], strict=True):
        assert iou(one, other.numpy()) >= 0.99


@pytest.mark.parametrize("size", [(60, 97), (213, 150), (128, 128), (33, 301), (240, 388)])
def test_the_default_finds_what_exact_finds(model, size):
    image = picture(size)
    exact, fast = (everything(image, model=model, exact=exact, **SURE) for exact in (True, False))
    assert len(exact) > 5
    overlap = rle.iou(exact.rles, fast.rles)
    assert (overlap.max(axis=1) >= 0.75).mean() >= 0.95
    assert (overlap.max(axis=0) >= 0.75).mean() >= 0.95
    assert overlap.max(axis=1)[overlap.max(axis=1) >= 0.75].mean() > 0.97


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize("exact", [True, False])
def test_every_family_answers_every_click(make, exact):
    model, image = make(), picture((61, 83))
    found = everything(image, model=model, exact=exact, box_nms_thresh=1.0, **OPEN)
    features = model.encode([image])[0]
    grid = [(83 * (i + 0.5) / 3, 61 * (j + 0.5) / 3) for j in range(3) for i in range(3)]
    clicks = [anymask.Prompt.point(*at) for at in grid]
    every = prompting.predict(model, features, clicks, multimask_output=True)
    every = every[np.flatnonzero(every.areas)]
    best = rle.iou(every.rles, found.rles).max(axis=1)
    assert np.mean(best > (0.99 if exact else 0.4)) > 0.9  # these masks are of a few cells
    assert np.abs(found.point_coords[:, None] - np.asarray(grid)).max(axis=2).min(axis=1).max() < 1e-3


def test_a_last_partial_batch_is_not_lost(model):
    every = {**OPEN, "points_per_side": 6, "box_nms_thresh": 1.0}  # no limit that a rounding could cross
    whole = everything(IMAGE, model=model, **every)
    assert len(np.unique(whole.point_coords, axis=0)) == 36
    for batch in (1, 5, 35, 36, 1000):
        again = everything(IMAGE, model=model, points_per_batch=batch, **every)
        assert len(again) == len(whole)
        assert np.median(rle.iou(again.rles, whole.rles).max(axis=1)) > 0.99  # another batch rounds otherwise


def test_one_mask_a_click_without_multimask(model):
    features = model.encode([IMAGE])[0]
    click = [anymask.Prompt.point(W / 2, H / 2)]
    single = prompting.predict(model, features, click, multimask_output=False)
    found = everything(
        IMAGE,
        model=model,
        exact=True,
        multimask_output=False,
        points_per_side=1,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    assert len(found) == 1
    assert rle.iou(found.rles, single.rles) > 0.99


def test_steps_count_every_click_and_can_be_stopped(model):
    settings = AutomaticSettings(points_per_side=9, crop_n_layers=1, pred_iou_thresh=0.7, stability_score_thresh=0.5)
    steps = list(everything_steps(IMAGE, model, settings))
    assert {step.total for step in steps} == {5 * 81}
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == 405
    assert sum(step.masks is not None for step in steps) == 5
    crops = [step.masks.crop_boxes[0].tolist() for step in steps if step.masks is not None and len(step.masks)]
    assert crops[-1] == [0, 0, W, H]  # the smallest come first, so that masks are final when they come
    everything_again = everything_steps(IMAGE, model, settings)
    first = [next(everything_again) for _ in range(2)]
    assert [step.done for step in first] == [step.done for step in steps[:2]]
    assert not torch.is_inference_mode_enabled()
    everything_again.close()
    together = collect(iter(steps), IMAGE.size)
    assert len(together) == sum(len(step.masks) for step in steps if step.masks is not None)
    assert together.ids.tolist() == list(range(1, len(together) + 1))


def test_masks_found_in_a_smaller_crop_stay(model):
    found = everything(IMAGE, model=model, crop_n_layers=1, crop_nms_thresh=0.5, **SURE)
    kept = boxes.distinct(found.boxes, np.linspace(1, 0, len(found)), 0.55)
    assert len(kept) == len(found)
    sizes = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found.crop_boxes.tolist()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("exact", [True, False])
def test_small_regions_are_cleaned(model, exact):
    area = 800
    raw = everything(IMAGE, model=model, exact=exact, **SURE)
    wanted = [cleaning.without_small_regions(mask, area) for mask in raw.masks]
    found = everything(IMAGE, model=model, exact=exact, min_mask_region_area=area, **SURE)
    changed = [next(dirty for mask, dirty in wanted if np.array_equal(mask, one)) for one in found.masks]
    assert set(changed) == {True, False}
    assert changed == sorted(changed)  # those that needed nothing go first


def test_own_grids_take_the_place_of_points_per_side(model):
    grid = np.asarray([[0.5, 0.5], [0.25, 0.75]])
    found = everything(IMAGE, model=model, point_grids=[grid], pred_iou_thresh=0, stability_score_thresh=0)
    assert {tuple(point) for point in found.point_coords.tolist()} <= {(W / 2, H / 2), (W / 4, 3 * H / 4)}
    with pytest.raises(ValueError, match="point_grids must be one for the image and one for each of 1 layers, got 1"):
        everything(IMAGE, model=model, point_grids=[grid], crop_n_layers=1)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([], "point_grids must be one for the image and one for each of 0 layers, got 0"),
        ([np.full((4, 2), 0.5)] * 4, "point_grids must be one for the image and one for each of 0 layers, got 4"),
        ([np.full((1, 4, 2), 0.5)], r"a grid of points must be \(n, 2\), x y of one point or more, got \(1, 4, 2\)"),
        ([np.zeros((0, 2))], r"a grid of points must be \(n, 2\), x y of one point or more, got \(0, 2\)"),
        ([np.asarray([[50, 80]])], "points of a grid must be shares of its crop's width and height, from 0 to 1"),
        ([np.asarray([[0.5, np.nan]])], "points of a grid must be shares of its crop's width and height, from 0 to 1"),
    ],
)
def test_grids_that_are_none_are_refused(model, grids, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        everything(IMAGE, model=model, point_grids=grids)


def test_names_of_transformers_are_aliases(model):
    ours = everything(IMAGE, model=model, **SURE, crop_n_layers=1, crop_nms_thresh=0.6)
    sure = {name: value for name, value in SURE.items() if name != "points_per_side"}
    theirs = everything(IMAGE, model=model, **sure, points_per_crop=6, crops_n_layers=1, crops_nms_thresh=0.6)
    assert ours.rles == theirs.rles
    assert set(automatic_settings.Names.__annotations__) == {
        *AutomaticSettings.__dataclass_fields__,
        *automatic_settings.ALIASES,
    }
    with pytest.raises(TypeError, match="unexpected keyword argument 'points'"):
        everything(IMAGE, model=model, points=6)
    with pytest.raises(TypeError, match="points_per_side and points_per_crop are one setting: give one of them"):
        everything(IMAGE, model=model, points_per_crop=6, points_per_side=6)


def test_records_in_every_output_mode(model):
    found = everything(IMAGE, model=model, **SURE)
    modes = {mode: to_records(found, mode) for mode in ("binary_mask", "uncompressed_rle", "coco_rle")}
    for one, binary, runs, packed in zip(found, *modes.values(), strict=True):
        assert np.array_equal(binary["segmentation"], one.masks[0])
        assert sum(runs["segmentation"]["counts"][1::2]) == binary["area"]
        assert packed["segmentation"] == one.rles[0]
        x, y, w, h = binary["bbox"]
        assert one.masks[0][y : y + h, x : x + w].sum() == binary["area"]
        assert list(binary) == [
            "segmentation",
            "area",
            "bbox",
            "predicted_iou",
            "point_coords",
            "stability_score",
            "crop_box",
        ]
    with pytest.raises(
        ValueError, match="output_mode must be one of binary_mask, uncompressed_rle, coco_rle, got 'png'"
    ):
        everything(IMAGE, model=model, output_mode="png")
    with pytest.raises(ValueError, match="records are made of masks of everything mode: these have no point_coords"):
        to_records(Masks.from_dense(np.ones((1, 4, 4), bool)))


def test_nothing_found_is_an_empty_result(model):
    found = everything(IMAGE, model=model, points_per_side=2, pred_iou_thresh=1.0, crop_n_layers=1)
    assert (len(found), found.size) == (0, (H, W))
    assert everything(IMAGE, model=model, points_per_side=2, pred_iou_thresh=1.0, output_mode="coco_rle") == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points_per_side", 0, "points_per_side must be a whole number from 1 to 1024, got 0"),
        ("points_per_side", 1025, "points_per_side must be a whole number from 1 to 1024, got 1025"),
        ("points_per_batch", -1, "points_per_batch must be a whole number, 1 or more, got -1"),
        ("crop_n_points_downscale_factor", 0, "crop_n_points_downscale_factor must be a whole number, 1 or more, got"),
        ("pred_iou_thresh", 1.5, "pred_iou_thresh must be a number from 0 to 1, got 1.5"),
        ("stability_score_thresh", -0.1, "stability_score_thresh must be a number from 0 to 1, got -0.1"),
        ("box_nms_thresh", float("nan"), "box_nms_thresh must be a number from 0 to 1, got nan"),
        ("crop_nms_thresh", 2, "crop_nms_thresh must be a number from 0 to 1, got 2"),
        ("crop_n_layers", 9, "crop_n_layers must be a whole number from 0 to 6, got 9"),
        ("crop_overlap_ratio", 1.0, "crop_overlap_ratio must be a number from 0 to less than 1, got 1.0"),
        ("stability_score_offset", -1.0, "stability_score_offset must be a number, 0 or more, got -1.0"),
        ("stability_score_offset", float("inf"), "stability_score_offset must be a number, 0 or more, got inf"),
        ("min_mask_region_area", -5, "min_mask_region_area must be a whole number, 0 or more, got -5"),
        ("overlap", 9, "overlap is that of tiles: give the side of a tile too, got overlap 9 alone"),
        ("tile", 20, "a tile must be at least 64 pixels wide, got 20"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        everything(IMAGE, model="pocket", **{name: value})


def test_what_is_no_number_is_in_no_range():
    whole, real = (automatic_settings.RANGES[name] for name in ("points_per_side", "box_nms_thresh"))
    assert all(value in whole for value in (1, 16, np.int64(1024)))
    assert not any(value in whole for value in (16.5, 16.0, "16", True, None, np.asarray([16])))
    assert all(value in real for value in (0, 1, 0.5, np.float32(0.5)))
    assert not any(value in real for value in ("0.5", True, None, float("nan"), np.asarray([0.5])))


def test_a_model_without_points_is_refused():
    model = tiny_sam3_lite_text()
    with pytest.raises(
        ValueError,
        match="needs a model that takes points: tiny-lite-text knows names and",
    ):
        everything(IMAGE, model=model)


def test_broken_weights_say_so():
    model = tiny_sam()
    with torch.no_grad():
        model.network.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="answers with NaN: its weights are broken"):
        everything(IMAGE, model=model, points_per_side=2)


def test_an_image_of_one_pixel_is_searched(model):
    tiny = Image(np.zeros((1, 1, 3), np.uint8))
    for exact in (True, False):
        found = everything(tiny, model=model, exact=exact, crop_n_layers=2, **OPEN)
        assert len(found) <= 27
        assert found.size == (1, 1)


TILED = {**SURE, "tile": 100, "overlap": 30}


@pytest.fixture(scope="module")
def in_tiles(model):
    return everything(picture((150, 230)), model=model, **TILED)


def test_tiles_find_small_things_and_keep_large_ones(model, in_tiles):
    whole = everything(picture((150, 230)), model=model, **SURE)
    from_tiles = in_tiles[(in_tiles.crop_boxes != (0, 0, 230, 150)).any(axis=1)]
    smaller = from_tiles[from_tiles.areas < whole.areas.min()]
    assert len(smaller) > 5 and rle.iou(smaller.rles, whole.rles).max() < 0.5
    assert len(np.unique(from_tiles.crop_boxes, axis=0)) == 6
    large = whole[(whole.boxes[:, 2:] - whole.boxes[:, :2]).max(axis=1) > 100]
    assert len(large) > 10 and rle.iou(large.rles, in_tiles.rles).max(axis=1).min() > 0.6


def test_tiles_leave_no_mask_twice(in_tiles):
    assert np.triu(rle.iou(in_tiles.rles, in_tiles.rles), 1).max() <= 0.7
    of_tiles = (in_tiles.crop_boxes != (0, 0, 230, 150)).any(axis=1)
    assert of_tiles.tolist() == sorted(of_tiles, reverse=True)  # smaller crops first, and of each kind the surest
    for scores in (in_tiles.scores[of_tiles], in_tiles.scores[~of_tiles]):
        assert len(scores) > 10 and scores.tolist() == sorted(scores, reverse=True)


def test_tiles_leave_no_mask_cut_at_a_seam(model, monkeypatch):
    """Each tile finds what fills its right half: cut in the left tile, and whole in the right one."""

    def right_half(sieve):
        x0, _, x1, _ = sieve.frame.crop_box
        mask = np.zeros((1, *sieve.frame.size), bool)
        mask[:, 20:80, (x0 + x1) // 2 : x1] = x1 - x0 == 100  # nothing in the whole image
        return Masks.from_dense(mask, crop_boxes=np.asarray([sieve.frame.crop_box]))

    monkeypatch.setattr(automatic.FastSieve, "masks", right_half)
    found = everything(picture((100, 200)), model=model, points_per_side=1, tile=100, overlap=0)
    assert found.boxes.tolist() == [[150, 20, 200, 80]]


def test_what_a_tile_cuts_is_there_to_be_joined(model, monkeypatch):
    parts = []
    monkeypatch.setattr(automatic, "join", lambda found, size, **_: parts.extend(found) or Masks.empty(size))
    everything(picture((150, 230)), model=model, **TILED)
    assert any(boxes.near_crop_edge(masks.boxes, crop, (150, 230)).any() for crop, masks in parts if len(masks))


def test_tiles_give_their_masks_in_the_last_step(model):
    steps = list(everything_steps(picture((150, 230)), model, AutomaticSettings(**TILED)))
    assert [step.masks is None for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].total == 36 * 7  # the image, and 2 x 3 tiles


def test_tiles_that_make_no_sense_are_refused(model):
    with pytest.raises(ValueError, match="the overlap must be from 0 to less than the tile of 100 pixels, got 100"):
        everything(IMAGE, model=model, tile=100, overlap=100)
    with pytest.raises(ValueError, match="tile and crop_n_layers both cut the image: ask for one of them"):
        everything(IMAGE, model=model, tile=100, crop_n_layers=1)
