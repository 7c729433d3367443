"""What a phrase learns from: folders, one picture, a COCO file; and what is refused or left out."""

import json

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.adapting.lessons import Lessons, read_lessons, read_pair, telling
from anymask.adapting.settings import InversionSettings
from anymask.data.pairs import read_pairs
from standin import write_disks


@pytest.fixture
def disks(tmp_path):
    return write_disks(tmp_path / "disks", 6)


def settings(**given):
    return InversionSettings(**given)


def white(path, size, value=255):
    PillowImage.fromarray(np.full(size, value, np.uint8)).save(path)


def size_of(path):
    """(h, w)"""
    with PillowImage.open(path) as picture:
        return picture.size[::-1]


def first(folders):
    image = min(folders[0].iterdir())
    return image, folders[1] / f"{image.stem}.png"


def test_folders_are_split_by_share_list_or_folder(disks, tmp_path):
    images, masks = disks
    stems = sorted(path.stem for path in images.iterdir())
    by_share = read_lessons(settings(images=images, masks=masks, val_share=0.5))
    assert (len(by_share.learn), len(by_share.held_out)) == (3, 3)
    assert read_lessons(settings(images=images, masks=masks, val_share=0)).held_out.rows == ()
    (tmp_path / "val.txt").write_text("\n".join(stems[:2]))
    (tmp_path / "train.txt").write_text("\n".join(stems[3:]))
    listed = read_lessons(settings(images=images, masks=masks, val_list=tmp_path / "val.txt"))
    assert [pair.image.stem for pair in listed.held_out.rows] == stems[:2]
    assert [pair.image.stem for pair in listed.learn.rows] == stems[2:]
    both = settings(images=images, masks=masks, val_list=tmp_path / "val.txt", train_list=tmp_path / "train.txt")
    assert [pair.image.stem for pair in read_lessons(both).learn.rows] == stems[3:]
    others = write_disks(tmp_path / "others", 2)
    apart = read_lessons(settings(images=images, masks=masks, val_images=others[0], val_masks=others[1]))
    assert (len(apart.learn), len(apart.held_out)) == (6, 2)
    shared = settings(images=images, masks=masks, val_images=images, val_masks=masks, val_list=tmp_path / "val.txt")
    assert {pair.image.stem for pair in read_lessons(shared).learn.rows} == set(stems[2:])
    assert apart.remarks()[0] == "6 images to learn from, 2 held out"


def test_one_picture_is_learned_from_without_others(disks, tmp_path):
    image, mask = first(disks)
    others = write_disks(tmp_path / "others", 6)[0]
    (others / "broken.png").write_bytes(b"no picture")
    lessons = read_lessons(settings(image=image, mask=mask, negatives=others))
    assert (len(lessons.learn), len(lessons.held_out), len(lessons.without)) == (1, 0, 6)
    assert list(lessons.failed) == ["broken.png"]
    with pytest.raises(ValueError, match="--negatives must be images without the thing, got 00.png, which has a mask"):
        read_lessons(settings(image=image, mask=mask, negatives=disks[0]))
    assert all(len(pair.masks) == 0 for pair in lessons.without)
    assert lessons.remarks()[0] == "1 image to learn from, 0 held out, 6 without the thing"


def test_a_mask_of_nothing_of_everything_or_of_another_size_is_refused(disks, tmp_path):
    image, _ = first(disks)
    h, w = size_of(image)
    bad = tmp_path / "bad.png"
    for write, message in (
        (lambda: white(bad, (h, w), 0), "bad.png is all black: it must be white on the object"),
        (lambda: white(bad, (h, w)), "bad.png is all white: it must be black beside the object"),
        (lambda: white(bad, (h, w + 2)), f"is {w} x {h} pixels, its mask .*bad.png {w + 2} x {h}: they must be alike"),
    ):
        write()
        with pytest.raises(ValueError, match=message):
            read_lessons(settings(image=image, mask=bad))
    with pytest.raises(ValueError, match="needs its mask: give --mask FILE"):
        read_pair(image, None)


def test_bad_masks_of_a_folder_are_named_and_the_rest_is_learned(disks, tmp_path):
    images, masks = disks
    stems = sorted(path.stem for path in images.iterdir())
    sizes = {stem: size_of(masks / f"{stem}.png") for stem in stems}
    white(masks / f"{stems[0]}.png", sizes[stems[0]])
    white(masks / f"{stems[1]}.png", sizes[stems[1]], 0)
    white(masks / f"{stems[2]}.png", (3, 3))
    (masks / f"{stems[3]}.png").rename(masks / "stranger.png")
    lessons = read_lessons(settings(images=images, masks=masks, val_share=0))
    assert len(lessons.learn) == 2
    said = "\n".join(lessons.remarks())
    assert "its mask is all white, it must be black beside the object" in said
    assert "they must be alike" in said and "1 empty, left out" in said
    assert "1 without a mask, left out" in said and "1 without an image, left out: stranger.png" in said
    assert len(lessons.failed) == 2
    for stem in stems[4:]:
        white(masks / f"{stem}.png", sizes[stem])
    with pytest.raises(ValueError, match="its mask is all white"):
        telling(read_pairs(images, masks, stems[4:]))


def test_a_category_of_a_coco_file_is_learned(disks, tmp_path):
    image = first(disks)[0]
    h, w = size_of(image)
    box = [1, 1, 5, 5]
    segment = [[1, 1, 6, 1, 6, 6, 1, 6]]
    notes = [
        {"id": i, "image_id": 1, "category_id": i, "segmentation": segment, "bbox": box, "area": 25} for i in (1, 2)
    ]
    coco = {"images": [{"id": 1, "file_name": image.name, "width": w, "height": h}], "annotations": notes}
    coco["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    given = {"images": disks[0], "annotations": tmp_path / "coco.json", "val_share": 0}
    [pair] = read_lessons(settings(**given, category="dog")).learn.rows
    assert pair.masks.labels == ("dog",)
    with pytest.raises(ValueError, match="--category must be one of cat, dog, got None"):
        read_lessons(settings(**given))


def test_what_is_given_twice_or_not_at_all_is_refused(disks, tmp_path):
    image, mask = first(disks)
    for given, message in (
        ({}, "give what to learn from once: --image and --mask, or --images and --masks"),
        ({"image": image, "mask": mask, "images": disks[0]}, "give what to learn from once"),
        ({"images": disks[0]}, "give the masks of the images in .* once: --masks, or a COCO file"),
        ({"images": disks[0], "masks": disks[1], "val_images": disks[0]}, "--val-images and --val-masks go together"),
        ({"image": image, "mask": mask, "val_images": disks[0]}, "--val-images would have no effect on one image"),
        ({"images": disks[0], "masks": disks[1], "mask": mask}, "--mask would have no effect on this folder of images"),
        ({"images": disks[0], "masks": disks[1], "category": "cat"}, "--category would have no effect on this folder"),
        ({"image": image, "mask": mask, "negatives": tmp_path}, "must hold images without the thing, but has none"),
    ):
        with pytest.raises(ValueError, match=message):
            read_lessons(settings(**given))
    (tmp_path / "all.txt").write_text("\n".join(path.stem for path in disks[0].iterdir()))
    with pytest.raises(ValueError, match="no image is left to learn from: all are held out"):
        read_lessons(settings(images=disks[0], masks=disks[1], val_list=tmp_path / "all.txt"))
    assert Lessons(read_pairs(*disks)).failed == {}
