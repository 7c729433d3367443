"""`anymask segment` through main: the grammar of prompts, what is shown and saved, and one line for every wrong use."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

import anymask
from anymask.cli.main import main
from anymask.cli.photos import FORMATS_HELP
from anymask.cli.prompts import exemplar_files, numbered, read_objects, split_exemplar
from anymask.cli.segment import DEFAULT_FORMATS
from anymask.data import exports
from anymask.types import Masks

W, H = 40, 30


@pytest.fixture
def here(pocket, tmp_path, monkeypatch) -> Path:
    """The current folder: photo.jpg, photos/ with two more, and a rough mask."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/one.jpg", "photos/two.jpg", "other.png"):
        PillowImage.fromarray(pixels).save(name)
    rough = np.zeros((H, W), np.uint8)
    rough[5:20, 5:20] = 255
    PillowImage.fromarray(rough).save("rough.png")
    return tmp_path


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["segment", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def documents(out: str) -> list[dict]:
    rows = json.loads(out)
    for row in rows:
        for mask in row["masks"]:
            assert mask["segmentation"]["size"] == row["size"]
            assert int(coco_mask.area(mask["segmentation"])) == mask["area"]
            assert coco_mask.toBbox(mask["segmentation"]).tolist() == mask["bbox"]
            assert isinstance(mask["score"], float)
            assert isinstance(mask["label"], str)
    return rows


def saved(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []


# --- the commands of the issue


def test_points(here, capsys):
    code, out, err = run(capsys, "photo.jpg", "--point", "32,24", "--point", "10,10,0", "-o", "out/")
    assert (code, err) == (0, "")
    assert saved() == ["photo.json", "photo.overlay.png"]
    assert out == "photo.jpg: 40 x 30, 1 mask -> out/photo.json, out/photo.overlay.png\n"


def test_boxes_as_json(here, capsys):
    words = ["photo.jpg", "--box", "4,3,36,28", "--box", "5,5,9,8", "--model", "pocket", "-o", "out/", "--json"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    [row] = documents(out)
    assert (row["file"], row["size"]) == ("photo.jpg", [H, W])
    assert [mask["id"] for mask in row["masks"]] == [1, 2]
    assert saved() == ["photo.json", "photo.overlay.png"]


def test_texts_over_a_glob_and_a_file(here, capsys):
    words = ["photos/*.jpg", "other.png", "--text", "cat", "--text", "coffee cup", "-o", "out/"]
    code, out, err = run(capsys, *words, "--format", "coco", "--format", "png", "--json")
    assert (code, err) == (0, "")
    assert [row["file"] for row in documents(out)] == ["photos/one.jpg", "photos/two.jpg", "other.png"]
    assert saved() == ["one.json", "one.png", "other.json", "other.png", "two.json", "two.png"]
    names = [row["name"] for row in json.loads(Path("out/one.json").read_text())["categories"]]
    assert names == ["cat", "coffee cup"]


def test_a_mask_with_a_point_and_three_candidates(here, capsys):
    code, out, _ = run(
        capsys, "photo.jpg", "--mask", "rough.png", "--point", "10,8", "--multimask", "-o", "out/", "--json"
    )
    assert code == 0
    assert [mask["id"] for mask in documents(out)[0]["masks"]] == [1, 1, 1]


def test_a_big_image_in_tiles(here, capsys):
    PillowImage.fromarray(np.random.default_rng(1).integers(0, 255, (100, 150, 3), dtype=np.uint8)).save("big.tif")
    prompts = ["--box", "70,50,90,90", "--box", "2,2,140,90", "--text", "cat"]
    code, out, err = run(capsys, "big.tif", *prompts, "--tile", "64", "--overlap", "8", "-o", "out/", "--json")
    assert (code, err) == (0, "")
    [row] = documents(out)
    assert row["size"] == [100, 150] and [mask["id"] for mask in row["masks"][:2]] == [1, 2]
    for mask, (x0, y0, x1, y1) in zip(row["masks"], [(70, 50, 90, 90), (2, 2, 140, 90)], strict=False):
        x, y, w, h = mask["bbox"]
        assert mask["area"] == 0 or (x0 <= x and y0 <= y and x + w <= x1 and y + h <= y1)
    boxes = [(70, 50, 90, 90), (2, 2, 140, 90)]
    masks = anymask.segment("big.tif", boxes=boxes, text="cat", tile=64, overlap=8)
    assert row["masks"] == masks.to_coco()
    assert saved() == ["big.json", "big.overlay.png"]


def test_the_answer_is_that_of_the_function(here, capsys):
    _, out, _ = run(capsys, "photo.jpg", "--point", "32,24", "--point", "10,10,0", "--box", "4,3,36,28", "--json")
    masks = anymask.segment("photo.jpg", points=[(32, 24), (10, 10)], point_labels=[1, 0], boxes=[(4, 3, 36, 28)])
    assert documents(out)[0]["masks"] == masks.to_coco()


# --- what is shown


def test_without_output_a_table_is_shown(here, capsys):
    code, out, err = run(capsys, "photo.jpg", "--point", "32,24")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "photo.jpg: 40 x 30, 1 mask"
    assert lines[1].split() == ["id", "name", "score", "pixels", "box", "x0,y0,x1,y1"]
    assert lines[2].split()[:2] == ["1", "-"]


def test_nothing_found_is_an_empty_result(here, capsys):
    Path("empty").mkdir()
    assert run(capsys, "empty", "--text", "cat", "--json") == (0, "[]\n", "")
    assert run(capsys, "*.tif", "--text", "cat") == (0, "no photos found: nothing to segment\n", "")


def test_what_a_format_cannot_hold_is_said(here, capsys):
    code, _, err = run(capsys, "photo.jpg", "--point", "32,24", "-o", "out", "--format", "yolo")
    assert code == 0
    assert err.startswith("anymask segment: photo.jpg: yolo does not keep scores, masks without a label")
    assert saved() == ["classes.txt", "photo.txt"]


def test_every_format_is_in_the_help():
    assert set(FORMATS_HELP.split(" (")[0].replace(" or ", ", ").split(", ")) == set(exports.FORMATS)
    assert DEFAULT_FORMATS == exports.DEFAULT_FORMATS


def test_prefix_and_limit(here, capsys):
    code, out, _ = run(
        capsys, "photos", "photo.jpg", "--point", "3,3", "--limit", "2", "--prefix", "new-", "-o", "out", "--json"
    )
    assert code == 0
    files = [row["file"] for row in documents(out)]
    assert len(files) == 2
    assert "photo.jpg" in files
    assert saved() == sorted(f"new-{Path(file).stem}{end}" for file in files for end in (".json", ".overlay.png"))


# --- how prompts combine


def test_points_are_one_object_and_each_box_is_one():
    objects = read_objects(
        [("box", "0,0,9,9"), ("point", "1,2"), ("box", "1,1,5,5"), ("point", "3,4,0"), ("mask", "m")][:4]
    )
    assert list(objects) == [1, 2, 3]
    assert [prompt.box_coords for prompt in objects.values()] == [(0, 0, 9, 9), None, (1, 1, 5, 5)]
    assert objects[2].point_coords.tolist() == [[1, 2], [3, 4]]
    assert objects[2].point_labels.tolist() == [1, 0]


def test_object_begins_the_prompts_of_an_object():
    parts = [
        ("object", "7"),
        ("box", "0,0,9,9"),
        ("point", "1,2,0"),
        ("object", "2"),
        ("point", "3,4"),
        ("object", "7"),
    ]
    objects = read_objects([*parts, ("point", "5,6")])
    assert list(objects) == [7, 2]
    assert objects[7].box_coords == (0, 0, 9, 9)
    assert objects[7].point_coords.tolist() == [[1, 2], [5, 6]]
    assert objects[2].point_coords.tolist() == [[3, 4]]


def test_masks_get_the_number_of_their_object():
    masks = Masks.from_dense(np.ones((5, 2, 2), bool), ids=[1, 1, 2, 3, 4], labels=["", "", "", "cat", "cat"])
    assert numbered(masks, (7, 2)).ids.tolist() == [7, 7, 2, 8, 9]
    assert numbered(masks, (1, 2)) is masks


def test_object_numbers_are_in_the_result(here, capsys):
    words = [
        "photo.jpg",
        "--object",
        "5",
        "--box",
        "4,3,36,28",
        "--point",
        "9,9,0",
        "--object",
        "3",
        "--point",
        "20,20",
    ]
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    assert [mask["id"] for mask in documents(out)[0]["masks"]] == [5, 3]


# --- exemplars


def asked(monkeypatch, model=None) -> list:
    """The prompts that reach `anymask.segmentation.segment`."""
    seen = []

    def segment(image, prompts, **settings):
        seen.extend(prompts)
        return Masks.empty(image.size)

    monkeypatch.setattr("anymask.segmentation.segment", segment)
    monkeypatch.setattr("anymask.asking.check_understood", lambda *_: None)  # pocket stands in
    return seen


def test_exemplars_reach_the_prompt_of_the_name(here, capsys, monkeypatch):
    seen = asked(monkeypatch)
    words = ["photo.jpg", "--text", "red car", "--exemplar", "1,2,8,6", "--not-exemplar", "9,1,14,6", "-o", "out/"]
    code, _, err = run(capsys, *words)
    assert (code, err) == (0, "")
    [prompt] = seen
    assert prompt.name == "red car"
    assert [(one.box, one.positive, one.image) for one in prompt.exemplars] == [
        ((1, 2, 8, 6), True, None),
        ((9, 1, 14, 6), False, None),
    ]
    assert saved() == ["photo.json", "photo.overlay.png"]


def test_exemplars_of_other_photos_and_of_masks(here, capsys, monkeypatch):
    seen = asked(monkeypatch)
    words = ["--exemplar", "other.png:1,2,8,6", "--exemplar", "photos/one.jpg:rough.png", "--exemplar", "rough.png"]
    code, _, err = run(capsys, "photo.jpg", *words, "--point", "3,3")
    assert (code, err) == (0, "")
    assert seen[0].point_coords.tolist() == [[3, 3]]
    shown = seen[1].exemplars
    assert [one.image and one.image.name for one in shown] == ["other", "one", None]
    assert [None if one.mask is None else int(one.mask.sum()) for one in shown] == [None, 225, 225]


@pytest.mark.parametrize(
    ("value", "photo", "shape"),
    [
        ("1,2,3,4", "", "1,2,3,4"),
        ("m.png", "", "m.png"),
        ("a b.jpg:1.5,2,3,4", "a b.jpg", "1.5,2,3,4"),
        ("p.jpg:m.png", "p.jpg", "m.png"),
        (r"C:\x\m.png", "", r"C:\x\m.png"),
        (r"C:\p.jpg:1,2,3,4", r"C:\p.jpg", "1,2,3,4"),
        (r"p.jpg:C:\m.png", "p.jpg", r"C:\m.png"),
        ("C:/p.jpg:D:/m.png", "C:/p.jpg", "D:/m.png"),
        ("a:b.jpg:1,2,3,4", "a:b.jpg", "1,2,3,4"),
    ],
)
def test_an_exemplar_is_split_at_the_last_colon_that_is_of_no_drive(value, photo, shape):
    assert split_exemplar(value) == (photo, shape)
    assert exemplar_files([value]) == [part for part in (photo, shape) if part.endswith(("g", "G"))]


def test_results_never_overwrite_an_exemplar(here, capsys):
    words = ["photos/one.jpg", "--exemplar", "one.png:1,1,5,5", "-o", ".", "--format", "png"]
    PillowImage.open("other.png").save("one.png")
    code, _, err = run(capsys, *words)
    assert (code, err) == (2, "anymask segment: one.png would overwrite an input: give another -o, or a --prefix\n")


# --- wrong use: one line, exit code 2, nothing written

WRONG = {
    "no prompt": (
        ["photo.jpg"],
        "nothing to segment: give a --point, --box, --mask, --text, --concept or --exemplar (see anymask segment"
        " --help)",
    ),
    "missing file": (["nowhere.jpg", "--point", "1,1"], "no such file or folder: nowhere.jpg"),
    "outside": (
        ["photo.jpg", "--point", "41,3"],
        "photo.jpg: a point must lie in the image of 40 x 30 pixels, got 41,3",
    ),
    "negative": (
        ["photo.jpg", "--point", "-1,3"],
        "photo.jpg: a point must lie in the image of 40 x 30 pixels, got -1,3",
    ),
    "no number": (["photo.jpg", "--point", "a,3"], "--point must be x,y or x,y,label in pixels, got 'a,3'"),
    "one number": (["photo.jpg", "--point", "3"], "--point must be x,y or x,y,label in pixels, got '3'"),
    "NaN": (["photo.jpg", "--point", "nan,3"], "point coordinates must be finite, got [[nan, 3.0]]"),
    "label": (
        ["photo.jpg", "--point", "3,3,2"],
        "the label of --point must be 1 (object) or 0 (background), got '3,3,2'",
    ),
    "short box": (["photo.jpg", "--box", "3,3,9"], "--box must be x0,y0,x1,y1 in pixels, got '3,3,9'"),
    "empty box": (
        ["photo.jpg", "--box", "5,5,5,9"],
        "a box must be x0,y0,x1,y1 with x1 > x0 and y1 > y0, got 5,5,5,9",
    ),
    "reversed box": (
        ["photo.jpg", "--box", "9,9,5,5"],
        "a box must be x0,y0,x1,y1 with x1 > x0 and y1 > y0, got 9,9,5,5",
    ),
    "box outside": (
        ["photo.jpg", "--box", "50,50,60,60"],
        "photo.jpg: a box must lie in the image of 40 x 30 pixels, got 50,50,60,60",
    ),
    "mask of another size": (
        ["photo.jpg", "--mask", "small.png"],
        "photo.jpg: a mask prompt must be of the size of the image, 40 x 30 pixels, got 8 x 6",
    ),
    "zoom and multimask": (
        ["photo.jpg", "--point", "1,1", "--zoom", "--multimask"],
        "zoom gives one mask an object, multimask several: ask for one of them",
    ),
    "an overlap without a tile": (
        ["photo.jpg", "--text", "cat", "--overlap", "8"],
        "overlap is that of tiles: give the side of a tile too, got overlap 8 alone",
    ),
    "a tile smaller than the overlap": (
        ["photo.jpg", "--text", "cat", "--tile", "64", "--overlap", "100"],
        "the overlap must be from 0 to less than the tile of 64 pixels, got 100",
    ),
    "a tile for a point": (
        ["photo.jpg", "--point", "1,1", "--tile", "64"],
        "tile is for texts and boxes, which say how large a thing is: for a point or a mask use zoom",
    ),
    "zoom on a text": (
        ["photo.jpg", "--text", "cat", "--zoom"],
        "pocket finds texts itself, at one size: zoom is for points, boxes, masks, a detector",
    ),
    "a scorer without a detector": (
        ["photo.jpg", "--text", "cat", "--scorer", "pocket"],
        "--scorer is for names that a detector finds, and this model finds names itself: add --detector",
    ),
    "a threshold without a text": (
        ["photo.jpg", "--point", "1,1", "--box-threshold", "0.2"],
        "--box-threshold is for names that a detector finds, and there is no --text",
    ),
    "a threshold out of range": (
        ["photo.jpg", "--text", "cat", "--detector", "windows", "--box-threshold", "2"],
        "box_threshold must be from 0 to 1, got 2",
    ),
    "an unknown detector": (
        ["photo.jpg", "--text", "cat", "--detector", "ground-dino"],
        "unknown detector 'ground-dino': did you mean grounding-dino-tiny? the detectors that anymask knows by name are"
        " grounding-dino-tiny, grounding-dino-base, mm-grounding-dino-tiny, mm-grounding-dino-base,"
        " mm-grounding-dino-large, owlv2-base, owlv2-large; or give a hub id, folder or file",
    ),
    "an unknown clean-up": (
        ["photo.jpg", "--text", "cat", "--cleanup", "soap"],
        "cleanup must be adaptive, classic or None, got 'soap'",
    ),
    "a name that is refused": (
        ["photo.jpg", "--text", "cat", "--not-text", "Cat"],
        "'Cat' is asked for and refused at once: take it out of the texts or the negative ones",
    ),
    "no concept file": (["photo.jpg", "--concept", "no.safetensors"], "no such file: no.safetensors"),
    "no scorer file": (["photo.jpg", "--text", "cat", "--scorer-file", "no.json"], "no such file: no.json"),
    "zoom in tiles": (
        ["photo.jpg", "--box", "1,1,9,9", "--zoom", "--tile", "64"],
        "tile and zoom both look closer: ask for one of them",
    ),
    "no mask file": (["photo.jpg", "--mask", "nowhere.png"], "no such file: nowhere.png"),
    "two masks": (
        ["photo.jpg", "--mask", "rough.png", "--mask", "rough.png"],
        "without --object there can be one --mask only: begin each object with --object N",
    ),
    "unknown model": (
        ["photo.jpg", "--point", "1,1", "-m", "poket"],
        "unknown model 'poket': the nearest known are pocket (anymask models); or give a hub id, folder or file",
    ),
    "missing model file": (["photo.jpg", "--point", "1,1", "-m", "a/b.pt"], "no such model file or folder: a/b.pt"),
    "unknown device": (["photo.jpg", "--point", "1,1", "--device", "tpu"], None),
    "unknown format": (
        ["photo.jpg", "--point", "1,1", "-o", "out", "--format", "gif"],
        f"a format must be one of {', '.join(exports.FORMATS)}, got 'gif'",
    ),
    "format for nothing": (
        ["photo.jpg", "--point", "1,1", "--format", "png"],
        "--format needs -o: a folder to save results in",
    ),
    "resize for nothing": (
        ["photo.jpg", "--point", "1,1", "--resize", "100"],
        "--resize needs -o: a folder to save results in",
    ),
    "resize to nothing": (
        ["photo.jpg", "--point", "1,1", "-o", "out", "--resize", "63"],
        "the longer side of pictures must be at least 64 pixels, got 63",
    ),
    "resize to a word": (["photo.jpg", "--point", "1,1", "-o", "out", "--resize", "small"], None),
    "prefix with a folder": (
        ["photo.jpg", "--point", "1,1", "-o", "out", "--prefix", "../x"],
        "--prefix must be a part of a file name, got '../x'",
    ),
    "output is a file": (
        ["photo.jpg", "--point", "1,1", "-o", "other.png"],
        "-o must be a folder, got the file other.png",
    ),
    "output in a file": (
        ["photo.jpg", "--point", "1,1", "-o", "other.png/out"],
        "cannot write to other.png/out: Not a directory",
    ),
    "not-text alone": (
        ["photo.jpg", "--point", "1,1", "--not-text", "dog"],
        "--not-text needs a --text or a --concept: it says what not to take for it",
    ),
    "empty text": (["photo.jpg", "--text", " "], "a text prompt must name something, got an empty text"),
    "bad limit": (["photo.jpg", "photos", "--point", "1,1", "--limit", "0"], "limit must be at least 1, got 0"),
    "object of letters": (
        ["photo.jpg", "--object", "cat", "--point", "1,1"],
        "--object must be a whole number from 1 on, got 'cat'",
    ),
    "prompt before its object": (
        ["photo.jpg", "--point", "1,1", "--object", "1", "--point", "2,2"],
        "with --object, every prompt must follow the --object it is of, but --point 1,1 comes first",
    ),
    "object of nothing": (
        ["photo.jpg", "--object", "1", "--object", "2", "--point", "2,2"],
        "object 1 has no prompt: give a --point, --box or --mask after --object 1",
    ),
    "two boxes of one object": (
        ["photo.jpg", "--object", "4", "--box", "1,1,5,5", "--box", "2,2,6,6"],
        "object 4 has more than one --box",
    ),
    "a background of nothing": (
        ["photo.jpg", "--box", "1,1,5,5", "--point", "2,2,0"],
        "points of label 0 alone are no object: to correct a box write --object 1 --box X0,Y0,X1,Y1 --point X,Y,0",
    ),
    "exemplar of pocket": (
        ["photo.jpg", "--exemplar", "1,1,5,5"],
        "pocket knows no exemplars: use sam3 (--model facebook/sam3)",
    ),
    "short exemplar": (
        ["photo.jpg", "--exemplar", "1,1,5"],
        "--exemplar must be x0,y0,x1,y1 in pixels, got '1,1,5'",
    ),
    "no exemplar": (
        ["photo.jpg", "--exemplar", "other.png:"],
        "an exemplar must be x0,y0,x1,y1 or a mask, with PHOTO: before it for another, got 'other.png:'",
    ),
    "reversed exemplar": (
        ["photo.jpg", "--text", "cat", "--not-exemplar", "9,9,5,5"],
        "a box must be x0,y0,x1,y1 with x1 > x0 and y1 > y0, got 9,9,5,5",
    ),
    "missing photo of an exemplar": (["photo.jpg", "--exemplar", "nowhere.jpg:1,1,5,5"], "no such file: nowhere.jpg"),
    "missing mask of an exemplar": (["photo.jpg", "--exemplar", "nowhere.png"], "no such file: nowhere.png"),
    "not-exemplar alone": (
        ["photo.jpg", "--point", "1,1", "--not-exemplar", "1,1,5,5"],
        "--not-exemplar needs a --text or an --exemplar: it says what not to take for it",
    ),
    "exemplar of two names": (
        ["photo.jpg", "--text", "cat", "--text", "dog", "--exemplar", "1,1,5,5"],
        "--exemplar refines one --text, or stands alone: got 2 of --text",
    ),
    "unknown flag": (["photo.jpg", "--pont", "1,1"], None),
    "no input": (["--point", "1,1"], None),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line(case, here, capsys):
    words, message = WRONG[case]
    PillowImage.new("L", (8, 6), 255).save("small.png")
    before = sorted(path.name for path in here.rglob("*"))
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err == f"anymask segment: {message}\n" if message else err.startswith("anymask segment: ")
    left = sorted(path.name for path in here.rglob("*"))
    assert [name for name in left if name != "out"] == before


BAD_FILES = {
    "truncated.jpg": "truncated.jpg cannot be read as an image: ",
    "empty.jpg": "empty.jpg must be an image, but is empty (0 bytes)",
    "text.jpg": "text.jpg must be an image: Pillow recognises no format in it",
    "bomb.png": "bomb.png has 30000 x 30000 = 900000000 pixels, more than max_pixels 200000000: make it smaller",
    "moving.gif": "moving.gif has 2 frames, but an image has one: save the frame you want as its own file",
}


def write_bad_files() -> None:
    good = Path("photo.jpg").read_bytes()
    Path("truncated.jpg").write_bytes(good[: len(good) // 2])
    Path("empty.jpg").touch()
    Path("text.jpg").write_text("no picture")
    PillowImage.new("1", (30000, 30000)).save("bomb.png")
    frames = [PillowImage.new("L", (8, 8), shade) for shade in (0, 200)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])


def test_bad_files_are_refused_by_name(here, capsys):
    write_bad_files()
    for name, message in BAD_FILES.items():
        code, out, err = run(capsys, name, "--point", "1,1", "-o", "out")
        assert (code, out, saved()) == (2, "", [])
        assert err.startswith(f"anymask segment: {message}")
        assert err.count("\n") == 1


def test_bad_files_do_not_stop_the_others(here, capsys):
    write_bad_files()
    words = ["truncated.jpg", "photo.jpg", "nowhere.jpg", "empty.jpg", "text.jpg", "bomb.png", "moving.gif", "photos"]
    code, out, err = run(capsys, *words, "--point", "1,1", "-o", "out", "--json")
    assert code == 1
    assert [row["file"] for row in documents(out)] == ["photo.jpg", "photos/one.jpg", "photos/two.jpg"]
    lines = err.splitlines()
    assert len(lines) == 7
    assert lines[-1].startswith("anymask segment: 6 of 9 inputs failed: ")
    assert all(name in lines[-1] for name in (*BAD_FILES, "nowhere.jpg"))
    assert len(saved()) == 6


def test_all_inputs_failing_is_code_2(here, capsys):
    code, out, err = run(capsys, "nowhere.jpg", "photo.jpg", "--point", "99,1")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "anymask segment: 2 of 2 inputs failed: nowhere.jpg, photo.jpg"


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_file_that_is_no_checkpoint(content, here, capsys):
    Path("bad.safetensors").write_bytes(Path("photo.jpg").read_bytes() if content is None else content)
    code, _, err = run(capsys, "photo.jpg", "--point", "1,1", "-m", "bad.safetensors")
    assert code == 2
    told = {b"": "is empty: ", b"no tensors": "is a text file, not weights: ", None: "is no whole safetensors file ("}
    assert err.startswith(f"anymask segment: bad.safetensors {told[content]}")
    assert err.count("\n") == 1


def test_results_never_overwrite_an_input_or_each_other(here, capsys):
    code, _, err = run(capsys, "other.png", "--point", "1,1", "-o", ".", "--format", "png")
    assert (code, err) == (2, "anymask segment: other.png would overwrite an input: give another -o, or a --prefix\n")
    PillowImage.open("other.png").save("photos/other.png")
    code, _, err = run(capsys, "other.png", "photos", "--point", "1,1", "-o", "out")
    same = "other.png and photos/other.png would both be saved as out/other.json"
    assert (code, err) == (2, f"anymask segment: {same}: use two runs, with another -o or --prefix\n")
    assert saved() == []


def found(monkeypatch) -> None:
    """Every photo holds one object, its lower right quarter."""

    def segment(image, prompts, **settings):
        mask = np.zeros((1, *image.size), bool)
        mask[0, image.size[0] // 2 :, image.size[1] // 2 :] = True
        return Masks.from_dense(mask)

    monkeypatch.setattr("anymask.segmentation.segment", segment)


def test_masks_and_original_are_saved_and_pictures_reduced(here, capsys, monkeypatch):
    found(monkeypatch)
    PillowImage.new("RGB", (400, 300)).save("photo.jpg")
    formats = [word for name in ("masks", "original", "overlay", "coco") for word in ("--format", name)]
    words = ["photo.jpg", "--object", "5", "--box", "40,30,360,280", "-o", "out", "--resize", "100", *formats]
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    assert saved() == ["photo.json", "photo.masks", "photo.original.png", "photo.overlay.png"]
    assert saved("out/photo.masks") == ["005.png"]
    for name in ("original", "overlay"):
        assert anymask.read_image(f"out/photo.{name}.png").size == (75, 100)
    [mask] = json.loads(out)[0]["masks"]
    drawn = anymask.read_image("out/photo.masks/005.png").pixels[:, :, 0]
    assert drawn.shape == (300, 400)
    assert int((drawn == 255).sum()) == mask["area"] == 150 * 200


def test_what_was_saved_among_photos_is_no_photo(here, capsys):
    words = ["photos/**", "--point", "3,3", "-o", "photos", "--format", "masks", "--format", "original", "--json"]
    for _ in range(2):
        code, out, err = run(capsys, *words)
        assert (code, [row["file"] for row in json.loads(out)]) == (0, ["photos/one.jpg", "photos/two.jpg"])
    assert err == "anymask: 4 pictures in photos are results of an earlier run: left out\n"
    found = ["one.jpg", "one.masks", "one.original.png", "two.jpg", "two.masks", "two.original.png"]
    assert saved("photos") == found


def test_a_folder_of_masks_never_replaces_one_that_holds_an_input(here, capsys, monkeypatch):
    found(monkeypatch)
    run(capsys, "photo.jpg", "--box", "3,3,30,25", "-o", "out", "--format", "masks")
    assert saved("out/photo.masks") == ["001.png"]
    words = ["photo.jpg", "--mask", "out/photo.masks/001.png", "--point", "9,9", "-o", "out", "--format", "masks"]
    code, _, err = run(capsys, *words)
    told = "out/photo.masks would overwrite an input: give another -o, or a --prefix"
    assert (code, err) == (2, f"anymask segment: {told}\n")
    assert saved("out/photo.masks") == ["001.png"]
    assert run(capsys, *words, "--prefix", "again-")[0] == 0


def test_a_full_disk_leaves_no_folder_of_masks_either(here, capsys, monkeypatch):
    def full(path, image):
        raise OSError(errno.ENOSPC, f"cannot write {path}: No space left on device")

    monkeypatch.setattr(exports, "write_image", full)
    words = ["photo.jpg", "--box", "3,3,30,25", "-o", "out", "--format", "masks", "--format", "overlay"]
    code, out, _ = run(capsys, *words)
    assert (code, out, saved()) == (2, "", [])


def test_the_same_file_twice_is_one_input(here, capsys):
    code, out, _ = run(capsys, "photo.jpg", "./photo.jpg", "*.jpg", "--point", "1,1", "-o", "out", "--json")
    assert code == 0
    assert [row["file"] for row in documents(out)] == ["photo.jpg"]


def test_a_full_disk_leaves_nothing_behind(here, capsys, monkeypatch):
    def full(path, image):
        raise OSError(errno.ENOSPC, f"cannot write {path}: No space left on device")

    monkeypatch.setattr(exports, "write_image", full)
    code, out, err = run(capsys, "photo.jpg", "--point", "1,1", "-o", "out")
    assert (code, out, saved()) == (2, "", [])
    assert err == "anymask segment: photo.jpg: cannot write out/photo.overlay.png: No space left on device\n"


def test_a_read_only_folder_is_refused_before_the_model_is_loaded(here, capsys, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr("anymask.models.load.load", lambda *_: pytest.fail("too late"))
    code, _, err = run(capsys, "photo.jpg", "--point", "1,1", "-o", "out")
    assert (code, err) == (2, "anymask segment: cannot write to out: Permission denied\n")


def test_an_interruption_says_what_is_kept(here, capsys, monkeypatch):
    real, seen = exports.save, []

    def save_once(*args, **kwargs):
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(exports, "save", save_once)
    code, out, err = run(capsys, "photos", "photo.jpg", "--point", "1,1", "-o", "out", "--json")
    assert (code, out) == (130, "")
    assert err == "anymask segment: interrupted: 1 of 3 images are done, their results in out are whole\n"
    assert saved() == ["one.json", "one.overlay.png"]


def test_debug_shows_where(here, capsys):
    code, _, err = run(capsys, "photo.jpg", "--point", "a", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1] == "anymask segment: --point must be x,y or x,y,label in pixels, got 'a'"
