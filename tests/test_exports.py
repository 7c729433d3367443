import importlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given

from anymask.data.archives import read_npz, write_npz
from anymask.data.binaries import read_masks_folder
from anymask.data.coco import read_coco
from anymask.data.detections import from_supervision, to_supervision
from anymask.data.exports import FORMATS, lost_by, output_paths, save
from anymask.data.images import read_image
from anymask.data.labelmaps import read_labelmap
from anymask.data.labelme import read_labelme
from anymask.data.yolo import read_classes, read_yolo
from anymask.types import Image, Masks, Prompt
from pictures import assert_same, results

COLUMNS = ("scores", "labels", "ids", "stability", "logits", "point_coords", "crop_boxes", "measures")
IMAGE = Image(np.full((6, 8, 3), 90, np.uint8), "photo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


def two_squares(**columns) -> Masks:
    dense = np.zeros((2, 6, 8), bool)
    dense[0, 1:3, 1:3], dense[1, 3:5, 4:7] = True, True
    return Masks.from_dense(dense, **columns)


@given(results())
def test_an_archive_holds_everything(folder, masks):
    write_npz(folder / "x.npz", masks)
    back = read_npz(folder / "x.npz")
    assert_same(back, masks, *COLUMNS)
    assert back.rles == masks.rles


def test_plain_numpy_opens_an_archive(folder):
    write_npz(folder / "plain.npz", two_squares(labels=["cat", "dog"]))
    with np.load(folder / "plain.npz", allow_pickle=False) as archive:
        assert archive["size"].tolist() == [6, 8]
        assert json.loads(str(archive["labels"])) == ["cat", "dog"]
        assert len(json.loads(str(archive["rles"]))) == 2


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut"])
def test_a_broken_archive_is_named(folder, content):
    (folder / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz must be an archive of masks written by anymask"):
        read_npz(folder / "bad.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "it has no scores"),
        ({"rles": np.asarray('["zz", "zz"]')}, "no compressed RLE"),
        ({"rles": np.asarray("[3]")}, "must be an archive"),
        ({"labels": np.asarray('["one"]')}, "labels must have a value for each of the 2 masks"),
        ({"size": np.asarray([6])}, "must be an archive"),
        ({"ids": np.asarray([0, 1])}, "ids must be positive"),
    ],
)
def test_an_archive_with_wrong_arrays_is_named(folder, change, message):
    write_npz(folder / "wrong.npz", two_squares())
    with np.load(folder / "wrong.npz") as archive:
        arrays = {name: archive[name] for name in archive.files} | change
    np.savez(folder / "wrong.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=rf"wrong\.npz must be an archive .*{message}|{message}"):
        read_npz(folder / "wrong.npz")


def test_a_cut_archive_and_a_missing_one_are_named(folder):
    write_npz(folder / "cut.npz", two_squares())
    whole = (folder / "cut.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz must be an archive"):
        read_npz(folder / "cut.npz")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.npz"):
        read_npz(folder / "none.npz")
    with zipfile.ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("a.txt", "b")
    with pytest.raises(ValueError, match=r"other\.npz must be an archive"):
        read_npz(folder / "other.npz")


@given(results())
def test_supervision_holds_everything(masks):
    pytest.importorskip("supervision")
    detections = to_supervision(masks)
    assert len(detections) == len(masks)
    np.testing.assert_array_equal(detections.xyxy, masks.boxes)
    assert_same(from_supervision(detections), masks, *COLUMNS)


def test_detections_of_others_are_read():
    supervision = pytest.importorskip("supervision")
    boxes, dense = np.asarray([[1, 1, 3, 3], [4, 3, 7, 5]], np.float32), two_squares().masks
    plain = from_supervision(supervision.Detections(xyxy=boxes, mask=dense))
    assert_same(plain, two_squares(), "scores", "labels", "ids")
    numbered = supervision.Detections(
        xyxy=boxes, mask=dense, class_id=np.asarray([4, 0]), tracker_id=np.asarray([0, 1])
    )
    assert from_supervision(numbered).labels == ("4", "0")
    assert from_supervision(numbered).ids.tolist() == [1, 2]
    assert from_supervision(to_supervision(two_squares(labels=["b", "a"]))).labels == ("b", "a")
    with pytest.raises(ValueError, match="detections must hold masks, got boxes only"):
        from_supervision(supervision.Detections(xyxy=boxes))


def test_without_supervision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="needs the package supervision: pip install supervision"):
        to_supervision(two_squares())


def test_every_format_is_written_and_read(tmp_path):
    masks = two_squares(labels=["cat", "dog"], scores=[0.9, 0.8])
    written = save(
        masks, IMAGE, tmp_path / "out", "a", list(FORMATS), file_name="a.jpg", prompts=[Prompt.point(2.0, 2.0)]
    )
    assert [path.name for path in written] == [
        "a.json", "a.original.png", "a.overlay.png", "a.sheet.png", "a.panels.png", "a.masks", "a.labelmap.png",
        "a.png", "a.txt", "a.labelme.json", "a.npz",
    ]  # fmt: skip
    paths = output_paths(tmp_path / "out", "a", list(FORMATS))
    assert written == list(paths.values())
    coco = read_coco(paths["coco"])
    assert coco.images[0].file_name == "a.jpg"
    assert_same(coco.masks(coco.images[0]), masks, "scores", "labels", "ids")
    np.testing.assert_array_equal(read_image(paths["original"]).pixels, IMAGE.pixels)
    assert read_image(paths["overlay"]).size == masks.size
    assert min(read_image(paths["sheet"]).size) > 100
    assert min(read_image(paths["panels"]).size) > 100
    assert_same(read_masks_folder(paths["masks"]), masks, "labels", "ids")
    assert_same(read_labelmap(paths["labelmap"]), masks, "ids")
    assert_same(read_labelmap(paths["png"]), masks, "ids")
    classes = read_classes(tmp_path / "out" / "classes.txt")
    assert_same(read_yolo(paths["yolo"], masks.size, classes), masks, "labels", "ids")
    assert_same(read_labelme(paths["labelme"]), masks, "labels", "ids", "scores")
    assert_same(read_npz(paths["npz"]), masks, *COLUMNS)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*(path.name for path in written), "classes.txt"])


def test_pictures_for_people_are_reduced_and_masks_are_not(tmp_path):
    """A bright square in the lower right quarter, with a click in its middle, at a third of the size."""
    image = Image(np.full((240, 300, 3), 90, np.uint8), "photo")
    dense = np.zeros((1, 240, 300), bool)
    dense[0, 120:230, 150:290] = True
    image.pixels[dense[0]] = 230
    masks = Masks.from_dense(dense, labels=["a"])
    click = [Prompt.point(220, 175)]
    paths = output_paths(tmp_path, "a", list(FORMATS))
    save(masks, image, tmp_path, "a", list(FORMATS), prompts=click, picture_side=100)
    sizes = {name: read_image(paths[name]).size for name in ("original", "overlay", "sheet", "panels")}
    assert sizes["original"] == sizes["overlay"] == (80, 100)
    assert max(sizes["sheet"]) == max(sizes["panels"]) == 100
    original, overlay = (read_image(paths[name]).pixels for name in ("original", "overlay"))
    assert (original[60, 90] == 230).all() and (original[20, 20] == 90).all()
    changed = (original != overlay).any(axis=2)
    assert changed[45:75, 55:95].all() and not changed[:20].any() and not changed[:, :30].any()
    assert (overlay[58, 73] == 255).all()  # the click
    for name, read in (("masks", read_masks_folder), ("labelmap", read_labelmap), ("npz", read_npz)):
        assert_same(read(paths[name]), masks, "ids")
    coco = read_coco(paths["coco"])
    assert_same(coco.masks(coco.images[0]), masks, "labels")


def test_a_small_picture_is_not_enlarged(tmp_path):
    original, overlay = save(two_squares(), IMAGE, tmp_path, "a", ["original", "overlay"], picture_side=64)
    assert read_image(original).size == read_image(overlay).size == IMAGE.size


@pytest.mark.parametrize("name", list(FORMATS))
def test_nothing_found_is_written_too(tmp_path, name):
    (path,) = save(Masks.empty(IMAGE.size), IMAGE, tmp_path, "none", [name])
    assert path.exists()


def test_the_default_is_coco_and_an_overlay(tmp_path):
    assert [path.name for path in save(two_squares(), IMAGE, tmp_path, "a")] == ["a.json", "a.overlay.png"]


def test_class_numbers_agree_over_the_files_of_a_folder(tmp_path):
    save(two_squares(labels=["cat", "dog"]), IMAGE, tmp_path, "a", ["yolo"])
    save(two_squares(labels=["bird", "dog"]), IMAGE, tmp_path, "b", ["yolo"])
    assert read_classes(tmp_path / "classes.txt") == ["cat", "dog", "bird"]
    assert [line[0] for line in (tmp_path / "b.txt").read_text().splitlines()] == ["2", "1"]
    save(two_squares(labels=["dog", ""]), IMAGE, tmp_path, "c", ["coco"], categories=["cat", "dog"])
    assert read_coco(tmp_path / "c.json").categories == {1: "cat", 2: "dog", 3: "object"}


def test_coco_keeps_what_made_the_masks(tmp_path):
    save(two_squares(), IMAGE, tmp_path, "a", ["coco"], settings={"model": "pocket", "points_per_side": None})
    assert read_coco(tmp_path / "a.json").info["settings"] == {"model": "pocket", "points_per_side": None}
    save(two_squares(), IMAGE, tmp_path, "a", ["coco"])
    assert "settings" not in read_coco(tmp_path / "a.json").info


def test_wrong_use_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="a format must be one of coco, original, overlay, .*, got 'jpeg'"):
        save(two_squares(), IMAGE, tmp_path, "a", ["coco", "jpeg"])
    with pytest.raises(ValueError, match=r"masks must have the size of the image, \(6, 8\) \(h, w\), got \(1, 1\)"):
        save(Masks.empty((1, 1)), IMAGE, tmp_path, "a")
    with pytest.raises(ValueError, match="the longer side of pictures must be at least 64 pixels, got 63"):
        save(two_squares(), IMAGE, tmp_path, "a", picture_side=63)
    with pytest.raises(ValueError, match="got 'jpeg'"):
        lost_by(two_squares(), "jpeg")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*a\.json"):
        save(two_squares(), IMAGE, tmp_path / "file", "a")


def test_formats_say_what_they_cannot_hold():
    plain = two_squares(labels=["a", "b"])
    assert {name: lost_by(plain, name) for name in FORMATS} == {
        "coco": [], "original": [], "overlay": [], "sheet": [], "panels": [], "masks": [], "labelmap": ["labels"],
        "png": ["labels"], "yolo": [], "labelme": [], "npz": [],
    }  # fmt: skip
    dense = np.concatenate([two_squares().masks, np.zeros((1, 6, 8), bool), two_squares().masks[:1]])
    rich = Masks.from_dense(
        dense,
        scores=[0.9, 0.8, 0.7, 0.6],
        labels=["a", "", "b", "c"],
        ids=[4, 4, 7, 8],
        stability=np.ones(4, np.float32),
        logits=np.zeros((4, 2, 2), np.float32),
    )
    logits = "low-resolution logits"
    assert lost_by(rich, "coco") == [logits]
    assert lost_by(rich, "npz") == []
    assert lost_by(rich, "png") == [
        "scores",
        "labels",
        "1 alternative masks (the best of each object is kept)",
        "4 overlapping pixels (the smaller object is on top)",
        "1 empty masks",
        "stability",
        logits,
    ]
    assert lost_by(rich, "sheet") == ["1 empty masks"]
    assert lost_by(rich, "masks") == ["scores", "stability", logits]
    assert lost_by(two_squares(labels=["Café", "b"]), "masks") == ["the spelling of labels"]
    unlabelled = "masks without a label (they become 'object')"
    assert lost_by(rich, "yolo") == ["scores", unlabelled, "object ids", "1 empty masks", "stability", logits]
    shared = "which 1 masks are alternatives of others"
    assert lost_by(rich, "labelme") == [unlabelled, shared, "1 empty masks", "stability", logits]


def test_a_sheet_says_how_many_masks_it_leaves_out():
    square = two_squares().rles[0]
    assert lost_by(Masks.from_rles([square] * 400, (6, 8)), "sheet") == []
    many = Masks.from_rles([square] * 403, (6, 8))
    assert lost_by(many, "sheet") == ["the 3 smallest masks (it has 400 cells)"]


@given(results())
def test_what_is_not_lost_comes_back(folder, masks):
    readers = {
        "coco": lambda path: read_coco(path).masks(read_coco(path).images[0]),
        "labelme": read_labelme,
        "npz": read_npz,
    }
    for name, read in readers.items():
        if not lost_by(masks, name):
            (path,) = save(masks, Image(np.zeros((*masks.size, 3), np.uint8)), folder, "x", [name])
            assert_same(read(path), masks, "scores", "labels", "ids")


@given(results().filter(len))
def test_what_a_folder_of_masks_does_not_lose_comes_back(folder, masks):
    inside = masks[np.argsort(masks.ids)]
    lost = lost_by(inside, "masks")
    (path,) = save(inside, Image(np.zeros((*masks.size, 3), np.uint8)), folder, "x", ["masks"])
    kept = [name for name, words in (("scores", "scores"), ("labels", "the spelling of labels")) if words not in lost]
    assert_same(read_masks_folder(path), inside, "ids", *kept)


def test_reading_and_writing_files_needs_no_torch():
    names = sorted(
        path[:-3] for path in os.listdir(importlib.import_module("anymask.data").__path__[0]) if path.endswith(".py")
    )
    code = "; ".join(
        ["import sys", *(f"import anymask.data.{name}" for name in names), "sys.exit('torch' in sys.modules)"]
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
