"""Images and masks paired by file stem or by a COCO file; what cannot be paired is named, and the rest goes on."""

import json

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.data.pairs import read_coco_pairs, read_objects, read_pairs, read_stems, split
from oracles import OBJECTS, box_mask, write_set

DISK = np.zeros((12, 16), np.uint8)
DISK[3:8, 4:9] = 1


@pytest.fixture
def folders(tmp_path):
    """Three images with their masks: 0 and 1 for the object, one two-valued, one in another format."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for stem in "abc":
        PillowImage.new("RGB", (16, 12)).save(tmp_path / "images" / f"{stem}.jpg")
    save(tmp_path / "masks" / "a.png", DISK)
    save(tmp_path / "masks" / "b.png", DISK * 255)
    save(tmp_path / "masks" / "c.tif", DISK.astype(np.uint16) * 700)
    return tmp_path


def save(path, values, mode=None):
    picture = PillowImage.fromarray(values)
    (picture if mode is None else picture.convert(mode)).save(path)


def pairs_of(folder, **options):
    return read_pairs(folder / "images", folder / "masks", **options)


# --- masks


def test_a_binary_mask_is_one_object_whatever_its_values_and_parts(tmp_path):
    two = DISK.copy()
    two[10:, 14:] = 1
    for name, values in (("ones.png", two), ("full.png", two * 255), ("grey.png", two * 90)):
        save(tmp_path / name, values)
        np.testing.assert_array_equal(read_objects(tmp_path / name).masks, two[None].astype(bool))
    save(tmp_path / "bits.png", two * 255, mode="1")
    save(tmp_path / "equal.png", np.stack([two * 255] * 3, axis=2))
    for name in ("bits.png", "equal.png"):
        np.testing.assert_array_equal(read_objects(tmp_path / name).masks, two[None].astype(bool))


@pytest.mark.parametrize(("suffix", "kind"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.int32)])
def test_each_value_of_a_label_map_is_an_object(tmp_path, suffix, kind):
    labels = np.zeros((6, 8), kind)
    labels[:2, :3], labels[4:, 5:] = 7, 3
    save(tmp_path / f"map{suffix}", labels)
    found = read_objects(tmp_path / f"map{suffix}")
    assert found.ids.tolist() == [3, 7]
    np.testing.assert_array_equal(found.masks, [labels == 3, labels == 7])


def test_soft_edges_are_one_object_from_half_on(tmp_path):
    soft = np.zeros((6, 8), np.uint8)
    soft[1:5, 1:7], soft[2:4, 2:6], soft[2, 2] = 100, 255, 128
    save(tmp_path / "soft.png", soft)
    np.testing.assert_array_equal(read_objects(tmp_path / "soft.png").masks, [soft >= 128])


def test_the_noise_of_jpeg_makes_no_objects(tmp_path):
    big = np.kron(DISK, np.ones((8, 8), np.uint8))
    save(tmp_path / "mask.jpg", big * 200)
    found = read_objects(tmp_path / "mask.jpg").masks
    assert len(found) == 1
    assert (found[0] != big.astype(bool)).mean() < 0.02


def test_the_unsure_border_of_an_indexed_picture_is_no_object(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[1:5, 1:7], labels[2:4, 2:6] = 255, 5
    picture = PillowImage.fromarray(labels)
    picture.putpalette([i for i in range(256) for _ in "rgb"])
    picture.save(tmp_path / "voc.png")
    assert read_objects(tmp_path / "voc.png").ids.tolist() == [5]


def test_masks_that_say_no_object_a_value_are_refused(tmp_path):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0, 0], colours[1, 1] = (255, 0, 0), (0, 255, 0)
    save(tmp_path / "colours.png", colours)
    with pytest.raises(ValueError, match=r"colours.png is coloured: a mask must have one channel, a value for each"):
        read_objects(tmp_path / "colours.png")
    save(tmp_path / "fractions.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"fractions.tif must hold whole numbers, a value for each object, got frac"):
        read_objects(tmp_path / "fractions.tif")


# --- folders


def test_images_pair_with_masks_by_stem(folders):
    pairs = pairs_of(folders)
    assert [pair.image.name for pair in pairs.rows] == ["a.jpg", "b.jpg", "c.jpg"]
    for pair in pairs.rows:
        np.testing.assert_array_equal(pair.masks.masks, DISK[None].astype(bool))
    assert pairs.remarks() == []


def test_what_has_no_pair_is_named_and_left_out(folders):
    PillowImage.new("RGB", (16, 12)).save(folders / "images" / "lone.jpg")
    save(folders / "masks" / "strange.png", DISK)
    save(folders / "masks" / "b.png", DISK * 0)
    pairs = pairs_of(folders)
    assert len(pairs) == 2
    assert pairs.remarks() == [
        "1 without a mask, left out: lone.jpg",
        "1 without an image, left out: strange.png",
        "1 empty, left out: b.jpg",
    ]


def test_a_bad_file_is_recorded_and_the_rest_goes_on(folders):
    save(folders / "masks" / "a.png", np.ones((5, 5), np.uint8))
    (folders / "images" / "b.jpg").write_bytes(b"no picture")
    save(folders / "masks" / "c.png", DISK)
    pairs = pairs_of(folders)
    assert [pair.image.name for pair in pairs.rows] == ["c.jpg"]
    a, b = pairs.failed["a.jpg"], pairs.failed["b.jpg"]
    assert a.endswith(
        f"a.jpg is 16 x 12 pixels, its mask in {folders / 'masks' / 'a.png'} 5 x 5 pixels: they must be alike"
    )
    assert "b.jpg must be an image" in b
    assert pairs.failed["c.tif"].endswith("c.tif: c.png has the same stem, so this one was left out")
    assert all(line.startswith("failed: ") for line in pairs.remarks())


def test_stems_choose_and_those_that_are_not_there_failed(folders):
    pairs = pairs_of(folders, stems=["c", "a", "a", "nosuch"])
    assert [pair.image.name for pair in pairs.rows] == ["c.jpg", "a.jpg"]
    assert pairs.failed == {"nosuch": f"nosuch: no image of that stem in {folders / 'images'}"}
    assert pairs.lone_masks == ()


def test_nothing_to_learn_from_says_why(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder: .*nowhere"):
        read_pairs(folders / "images", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a.png must be a folder, but is a file"):
        read_pairs(folders / "images", folders / "masks" / "a.png")
    (tmp_path / "none").mkdir()
    with pytest.raises(
        ValueError, match="none must hold a mask for each image, .* of the same file stem, but is empty"
    ):
        read_pairs(folders / "images", tmp_path / "none")
    save(tmp_path / "none" / "a_mask.png", DISK)
    with pytest.raises(ValueError, match="no image in .* has a mask in .*: names must agree, as a.jpg with a.png"):
        read_pairs(folders / "images", tmp_path / "none")
    save(tmp_path / "none" / "a.png", DISK * 0)
    with pytest.raises(ValueError, match=r"1 masks are empty \(a.jpg\)"):
        read_pairs(folders / "images", tmp_path / "none", stems=["a"])


def test_lists_of_stems(tmp_path):
    (tmp_path / "list.txt").write_text("one\n\n two \n")
    assert read_stems(tmp_path / "list.txt") == ["one", "two"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt must name at least one image, a file stem a line, but is empty"):
        read_stems(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="no such file: .*nolist"):
        read_stems(tmp_path / "nolist")


# --- COCO


def test_a_coco_file_gives_the_same_pairs(tmp_path):
    file = write_set(tmp_path)
    pairs = read_coco_pairs(tmp_path, file)
    assert [pair.image.name for pair in pairs.rows] == ["1.png", "2.png", "3.png", "4.png"]
    np.testing.assert_array_equal(pairs.rows[0].masks.masks, [box_mask(box) for _, box, _ in OBJECTS])
    assert [pair.image.name for pair in read_coco_pairs(tmp_path, file, ["3"]).rows] == ["3.png"]


def test_bad_images_of_a_coco_file_are_recorded(tmp_path):
    file = write_set(tmp_path)
    (tmp_path / "2.png").unlink()
    PillowImage.new("RGB", (3, 3)).save(tmp_path / "3.png")
    content = json.loads(file.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 4]
    file.write_text(json.dumps(content))
    pairs = read_coco_pairs(tmp_path, file)
    assert [pair.image.name for pair in pairs.rows] == ["1.png"]
    assert "no such file" in pairs.failed["2.png"]
    assert "3.png is 3 x 3 pixels" in pairs.failed["3.png"]
    assert pairs.lone_images == ("4.png",)
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"no image of .*set.json has a mask: it must hold annotations"):
        read_coco_pairs(tmp_path, file)


# --- split


def test_a_share_is_held_out_by_the_seed(folders):
    pairs = pairs_of(folders)
    learned, held = split(pairs, 0.1, seed=0)
    assert (len(learned), len(held)) == (2, 1)
    assert {pair.image for pair in (*learned.rows, *held.rows)} == {pair.image for pair in pairs.rows}
    assert [pair.image for pair in split(pairs, 0.1, seed=0)[1].rows] == [pair.image for pair in held.rows]
    assert len({split(pairs, 0.1, seed)[1].rows[0].image for seed in range(9)}) == 3
    assert [len(part) for part in split(pairs, 0.0)] == [3, 0]
    assert [len(part) for part in split(pairs, 0.99)] == [1, 2]
    with pytest.raises(ValueError, match="the share of validation images must be at least 0 and below 1, got 1.5"):
        split(pairs, 1.5)
