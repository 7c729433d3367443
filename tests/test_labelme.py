import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from PIL import Image as PillowImage

from anymask.data.labelme import read_labelme, write_labelme
from anymask.types import Masks
from pictures import assert_same, results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labelme")


@given(results())
def test_masks_labels_scores_and_ids_come_back(folder, masks):
    held = masks[masks.areas > 0]
    write_labelme(folder / "x.json", masks, "x.jpg")
    back = read_labelme(folder / "x.json")
    assert_same(back, held, "scores", "ids")
    assert back.labels == tuple(label or "object" for label in held.labels)


def test_the_file_is_what_labelme_opens(folder):
    dense = np.zeros((1, 3, 5), bool)
    dense[0, 0, 0], dense[0, 1:, 3:] = True, True
    write_labelme(folder / "a.json", Masks.from_dense(dense, labels=["cat"], ids=[7], scores=[0.5]), "a.jpg")
    content = json.loads((folder / "a.json").read_text())
    assert {key: content[key] for key in ("imagePath", "imageData", "imageHeight", "imageWidth", "flags")} == {
        "imagePath": "a.jpg", "imageData": None, "imageHeight": 3, "imageWidth": 5, "flags": {},
    }  # fmt: skip
    shapes = content["shapes"]
    assert [shape["points"] for shape in shapes] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[3, 1], [5, 1], [5, 3], [3, 3]],
    ]
    assert {(s["label"], s["group_id"], s["shape_type"], s["score"]) for s in shapes} == {("cat", 7, "polygon", 0.5)}


def test_alternatives_of_one_object_stay_apart(folder):
    masks = Masks.from_dense(np.eye(2, dtype=bool)[:, None], ids=[3, 3], labels=["cat", "cat"])
    write_labelme(folder / "b.json", masks, "b.jpg")
    back = read_labelme(folder / "b.json")
    assert_same(back, masks)
    assert back.ids.tolist() == [1, 2]


def labelme(folder, *shapes, **fields):
    content = {"imageHeight": 20, "imageWidth": 30, "shapes": list(shapes)} | fields
    (folder / "hand.json").write_text(json.dumps(content))
    return folder / "hand.json"


def test_shapes_drawn_by_hand_are_read(folder):
    buffer = io.BytesIO()
    PillowImage.fromarray(np.asarray([[True, False], [True, True]])).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    path = labelme(
        folder,
        {"label": "a", "points": [[10, 8], [4, 2]], "shape_type": "rectangle", "group_id": None},
        {"label": "b", "points": [[20, 10], [20, 15]], "shape_type": "circle"},
        {"label": "c", "points": [[3, 4], [4, 5]], "shape_type": "mask", "mask": png},
        {"label": "d", "points": [[0, 0], [6, 0], [0, 6]], "group_id": 1},
        {"label": "d", "points": [[20, 0], [26, 0], [20, 6]], "group_id": 1},
    )
    masks = read_labelme(path)
    assert masks.labels == ("a", "b", "c", "d")
    assert masks.areas[0] == 36
    assert masks.boxes[0].tolist() == [4, 2, 10, 8]
    assert masks.areas[1] == pytest.approx(np.pi * 25, rel=0.1)
    assert np.argwhere(masks.masks[2]).tolist() == [[4, 3], [5, 3], [5, 4]]
    assert masks.areas[3] == pytest.approx(36, rel=0.2)
    assert masks.masks[3][0, [0, 20]].all()
    assert masks.ids.tolist() == [1, 2, 3, 4]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "x", "points": [[1, 2]], "shape_type": "point"}, "the point 'x' cannot be read: it has no area"),
        ({"label": "x", "points": [[1, 2], [3, 4]], "shape_type": "polygon"}, "the polygon 'x' .* at least 3 points"),
        ({"label": "x", "points": [[1, 2], [3]], "shape_type": "polygon"}, "the polygon 'x' cannot be read"),
        ({"label": "x", "points": [[1, 2]], "shape_type": "circle"}, "the circle 'x' cannot be read"),
        ({"label": "x", "shape_type": "polygon"}, "the polygon 'x' cannot be read: 'points'"),
        ({"label": "x", "points": [[0, 0]], "shape_type": "mask", "mask": "?"}, "a PNG in base64"),
        ({"label": "x", "points": [[0, 0]], "shape_type": "mask", "mask": "aaaa"}, "must be an image"),
        ({"label": "x", "points": [[0, 0]], "shape_type": "mask"}, "the mask 'x' cannot be read: 'mask'"),
    ],
)
def test_a_broken_shape_is_named(folder, shape, message):
    with pytest.raises(ValueError, match=rf"hand\.json: .*{message}"):
        read_labelme(labelme(folder, shape))


def test_a_mask_beyond_the_picture_is_refused(folder):
    buffer = io.BytesIO()
    PillowImage.new("1", (5, 5), 1).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(ValueError, match=r"its mask of \(5, 5\) at 26, 0 must lie within the image of \(20, 30\)"):
        read_labelme(labelme(folder, {"label": "x", "points": [[26, 0]], "shape_type": "mask", "mask": png}))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"imageHeight": 3, "imageWidth": "a", "shapes": []}', '{"shapes": 3}']
)
def test_other_files_are_named(folder, content):
    (folder / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json must be a LabelMe file"):
        read_labelme(folder / "other.json")
