import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anymask.data.coco import CocoImage, read_coco, to_coco, write_coco
from anymask.ops import rle
from anymask.types import Masks
from pictures import assert_same, results

KEPT = ("scores", "labels", "ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("coco")


@given(st.lists(results(), max_size=3), st.booleans())
def test_what_is_written_is_read(folder, many, polygons):
    write_coco(folder / "x.json", [(f"{i}.jpg", masks) for i, masks in enumerate(many)], polygons=polygons)
    back = read_coco(folder / "x.json", folder)
    assert [image.file_name for image in back.images] == [f"{i}.jpg" for i in range(len(many))]
    for image, masks in zip(back.images, many, strict=True):
        assert_same(back.masks(image), masks, *KEPT)
        if len(masks):
            assert_same(back.masks(image), masks, "stability", "point_coords", "crop_boxes", "measures")
        assert len(back.crowds(image)) == 0


@given(results(), st.booleans())
def test_pycocotools_reads_the_same_masks(masks, polygons):
    document = to_coco([("a.jpg", masks)], polygons=polygons)
    for row, mask in zip(document["annotations"], masks.masks, strict=True):
        segmentation = row["segmentation"]
        if isinstance(segmentation, list):
            assert polygons
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *masks.size))
        else:
            assert not polygons or not mask.any()
        # pycocotools' own decoder warns with numpy 2 (issue of its __array__); compare in RLE.
        counts = segmentation["counts"]
        assert (counts if isinstance(counts, str) else counts.decode()) == rle.encode(mask[None])[0]["counts"]
        assert row["area"] == mask.sum()


def test_the_file_is_a_coco_data_set(folder, capsys):
    masks = Masks.from_dense(np.ones((2, 3, 4), bool), labels=["cat", ""], ids=[7, 9])
    write_coco(folder / "set.json", [("a.jpg", masks), ("b.jpg", masks)], polygons=True, categories=["dog"])
    coco = COCO(str(folder / "set.json"))
    capsys.readouterr()
    assert coco.getAnnIds() == [1, 2, 3, 4]
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ["dog", "cat", "object"]
    assert coco.loadAnns(3)[0] == {
        "id": 3, "image_id": 2, "category_id": 2, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]], "area": 12,
        "bbox": [0, 0, 4, 3], "score": 1.0, "label": "cat", "object_id": 7,
    }  # fmt: skip
    assert coco.annToRLE(coco.loadAnns(3)[0])["counts"].decode() == rle.encode(np.ones((1, 3, 4), bool))[0]["counts"]


POLYGONS = [[1, 1, 3, 1, 3, 3, 1, 3], [4, 0, 6, 0, 6, 1, 4, 1]]
RUNS = {"size": [4, 6], "counts": [0, 4, 20]}
DOCUMENT = {
    "images": [
        {"id": 5, "file_name": "sub/a.jpg", "height": 4, "width": 6, "source": "zoo", "license": 3},
        {"id": 0, "file_name": "b.jpg", "height": 2, "width": 2},
    ],
    "categories": [{"id": 0, "name": "cat"}, {"id": 17, "name": "dog"}],
    "sources": [{"name": "zoo", "text_exhaustive": True}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 17, "segmentation": POLYGONS},
        {"id": 2, "image_id": 5, "category_id": 0, "segmentation": RUNS, "iscrowd": 1},
        {"id": 3, "image_id": 5, "category_id": 0, "segmentation": {"size": [4, 6], "counts": "44`0"}, "iscrowd": 0},
    ],
}  # fmt: skip


def written(folder, change=lambda document: None):
    document = copy.deepcopy(DOCUMENT)
    change(document)
    (folder / "x.json").write_text(json.dumps(document))
    return folder / "x.json"


def test_polygons_rle_lists_crowds_and_extra_fields(tmp_path):
    coco = read_coco(written(tmp_path), tmp_path / "pictures")
    assert len(coco) == 2
    assert coco.images[0] == CocoImage(5, "sub/a.jpg", (4, 6), "zoo", {"license": 3})
    assert coco.path(coco.images[0]) == tmp_path / "pictures" / "sub" / "a.jpg"
    assert coco.categories == {0: "cat", 17: "dog"}
    assert coco.sources["zoo"]["text_exhaustive"] is True
    masks, crowds = coco.masks(coco.images[0]), coco.crowds(coco.images[0])
    assert masks.labels == ("dog", "cat")
    assert masks.ids.tolist() == [1, 2]
    expected = np.zeros((4, 6), bool)
    expected[1:3, 1:3], expected[0, 4:6] = True, True
    np.testing.assert_array_equal(masks.masks[0], expected)
    assert masks.masks[1].sum() == 4
    assert masks.masks[1, :, 1].all()
    assert crowds.masks[0, :, 0].all()
    assert crowds.areas.tolist() == [4]
    assert len(coco.masks(coco.images[1])) == 0
    assert read_coco(tmp_path / "x.json").images_dir == tmp_path


def put(*path, value):
    """A change of the document: the entry at `path` becomes `value`."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("images", value=3), "an object with a list of objects called 'images'"),
        (lambda document: document.pop("categories"), "called 'categories'"),
        (put("annotations", 0, value=[]), "called 'annotations'"),
        (put("sources", value="x"), "called 'sources'"),
        (put("images", 1, "id", value=5), "every image must have an id of its own"),
        (put("images", 1, "id", value="a"), "image must have a whole number as its 'id', got 'a'"),
        (put("images", 0, "height", value=None), "image 5 must have a whole number as its 'height', got None"),
        (put("images", 0, "width", value=0), "image 5 must have a height and width above 0, got 4 and 0"),
        (put("images", 0, "file_name", value=""), "image 5 must have a text as its 'file_name'"),
        (put("categories", 0, "name", value=1), "category must have a text as its 'name', got 1"),
        (put("annotations", 1, "id", value=1), "annotation 1 comes twice"),
        (put("annotations", 1, "image_id", value=9), "annotation 2 has image_id 9, which no image has"),
        (put("annotations", 1, "image_id", value=[9]), "annotation 2 must have a whole number as its 'image_id'"),
        (put("annotations", 1, "category_id", value=9), "annotation 2 has category_id 9, which no category has"),
        (put("annotations", 1, "segmentation", value=None), "annotation 2 must have a segmentation: polygons or RLE"),
    ],
)
def test_a_broken_structure_is_refused_at_once(tmp_path, change, message):
    with pytest.raises(ValueError, match=r"x\.json: .*" + message):
        read_coco(written(tmp_path, change))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "it is empty"),
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 points"),
        ([1, 2, 3, 4, 5, 6], "each polygon must be a list"),
        ([[1, 2, 3, 4, 5, "a"]], "could not convert"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ({"size": [6, 4], "counts": "44`0"}, r"must have the image's size \[4, 6\] \[h, w\], got \[6, 4\]"),
        ({"size": 3, "counts": "44`0"}, "not iterable"),
        ({"size": [4, 6], "counts": "44"}, "cover 4 x 6 = 24 pixels, got 8"),
        ({"size": [4, 6], "counts": [0, 4]}, "cover 4 x 6 = 24 pixels, got 4"),
        ({"size": [4, 6], "counts": [0, 4.5, 19.5]}, "whole numbers"),
        ({"size": [4, 6], "counts": 7}, "annotation 3 has a broken segmentation"),
        ({"size": [4, 6]}, "counts"),
    ],
)
def test_a_broken_segmentation_is_refused_by_id(tmp_path, segmentation, message):
    coco = read_coco(written(tmp_path, put("annotations", 2, "segmentation", value=segmentation)))
    with pytest.raises(ValueError, match=r"x\.json: annotation 3 has a broken segmentation") as caught:
        coco.masks(coco.images[0])
    with pytest.raises(ValueError, match=message):
        raise caught.value
    assert len(coco.crowds(coco.images[0])) == 1


@pytest.mark.parametrize(("key", "value"), [("score", "high"), ("stability", None), ("object_id", 1.5)])
def test_a_broken_column_is_refused_by_id(tmp_path, key, value):
    def change(document):
        for row in document["annotations"]:
            row[key] = 1
        document["annotations"][2][key] = value

    coco = read_coco(written(tmp_path, change))
    with pytest.raises(ValueError, match=rf"x\.json: annotation 3 must have a (whole )?number as its '{key}'"):
        coco.masks(coco.images[0])


@pytest.mark.parametrize(("key", "n"), [("point_coords", 2), ("crop_box", 4)])
@pytest.mark.parametrize("value", [None, [1, 2, 3], "here"])
def test_a_broken_list_of_numbers_is_refused_by_id(tmp_path, key, n, value):
    def change(document):
        for row in document["annotations"]:
            row[key] = [[1.0] * n]
        document["annotations"][2][key] = value

    coco = read_coco(written(tmp_path, change))
    with pytest.raises(ValueError, match=rf"x\.json: annotation 3 must have {n} numbers as its '{key}', got"):
        coco.masks(coco.images[0])


def test_a_file_that_is_no_json_or_missing_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json must be JSON"):
        read_coco(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*y\.json"):
        read_coco(tmp_path / "y.json")
