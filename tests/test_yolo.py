import numpy as np
import pytest
from hypothesis import given

from anymask.data.yolo import (
    class_name,
    read_classes,
    read_yolo,
    write_classes,
    write_yolo,
)
from anymask.types import Masks
from pictures import assert_same, results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("yolo")


@given(results())
def test_masks_and_labels_come_back(folder, masks):
    held = masks[masks.areas > 0]
    classes = list(dict.fromkeys(class_name(label) for label in masks.labels))
    write_yolo(folder / "x.txt", masks, classes)
    write_classes(folder / "classes.txt", classes)
    back = read_yolo(folder / "x.txt", masks.size, read_classes(folder / "classes.txt"))
    assert_same(back, held)
    assert back.labels == tuple(class_name(label) for label in held.labels)


def test_large_masks_come_back_exactly(folder):
    size = (3001, 4003)
    dense = np.zeros((1, *size), bool)
    dense[0, 7:2990, 11:3999] = True
    dense[0, 1000:1001, 1000:3000] = False
    masks = Masks.from_dense(dense, labels=["cat"])
    write_yolo(folder / "large.txt", masks, ["cat"])
    assert read_yolo(folder / "large.txt", size, ["cat"]).rles == masks.rles


def test_the_file_is_what_ultralytics_reads(folder):
    dense = np.zeros((1, 4, 8), bool)
    dense[0, 1:3, 2:6] = True
    write_yolo(folder / "a.txt", Masks.from_dense(dense, labels=["dog"]), ["cat", "dog"])
    assert (folder / "a.txt").read_text() == "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"
    write_yolo(folder / "none.txt", Masks.empty((2, 2)), [])
    assert (folder / "none.txt").read_text() == ""
    assert len(read_yolo(folder / "none.txt", (2, 2), [])) == 0


def test_class_names_are_single_lines(folder):
    assert class_name(" a\n b ") == "a b"
    assert class_name(" ") == "object"
    write_classes(folder / "names.txt", ["cat", "coffee\ncup", ""])
    assert read_classes(folder / "names.txt") == ["cat", "coffee cup", "object"]


def test_a_label_without_a_class_is_refused(folder):
    with pytest.raises(ValueError, match="classes must hold every label, got no 'cat' among dog"):
        write_yolo(folder / "y.txt", Masks.from_dense(np.ones((1, 1, 1), bool), labels=["cat"]), ["dog"])
    assert not (folder / "y.txt").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 1 1", r"holds a box \(YOLO detection\)"),
        ("0 0 0 1 1 0", "got 6 numbers"),
        ("0 0 0 1 1", "a mask needs a polygon"),
        ("2 0 0 1 0 1 1", "its class must be from 0 to 1, got 2"),
        ("-1 0 0 1 0 1 1", "got -1"),
        ("0 0 0 1 0 1 x", "could not convert"),
        ("0 0 0 1 0 1 nan", "finite"),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    (folder / "bad.txt").write_text("0 0 0 1 0 1 1\n\n" + line)
    with pytest.raises(ValueError, match=rf"bad\.txt, line 3: .*{message}"):
        read_yolo(folder / "bad.txt", (4, 4), ["cat", "dog"])


def test_other_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing\.txt"):
        read_yolo(folder / "nothing.txt", (4, 4), [])
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.txt must be a text file in UTF-8"):
        read_yolo(folder / "binary.txt", (4, 4), [])
