"""Folders of binary masks: what is written is read again, names are safe, and a folder is whole or not there."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from anymask.data import binaries
from anymask.data.binaries import plain_words, read_masks_folder, write_masks_folder
from anymask.types import Masks
from pictures import assert_same, results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("binaries") / "x.masks"


def two(**columns) -> Masks:
    dense = np.zeros((2, 6, 8), bool)
    dense[0, 1:5, 1:5], dense[1, 3:5, 4:7] = True, True
    return Masks.from_dense(dense, **columns)


@given(results().filter(len))
def test_masks_ids_and_plain_labels_come_back(folder, masks):
    write_masks_folder(folder, masks)
    inside = masks[np.argsort(masks.ids)]
    kept = replace(inside, labels=tuple(plain_words(label) for label in inside.labels))
    assert_same(read_masks_folder(folder), kept, "ids", "labels")


@given(results().filter(len), st.data())
def test_alternatives_come_back_in_their_order(folder, masks, data):
    n = len(masks)
    ids = np.asarray(data.draw(st.lists(st.integers(1, 2), min_size=n, max_size=n)))
    write_masks_folder(folder, replace(masks, ids=ids))
    assert_same(read_masks_folder(folder), replace(masks, ids=ids)[np.argsort(ids, kind="stable")], "ids")


@given(st.text())
def test_what_a_name_keeps_of_a_label_is_kept_for_good(label):
    words = plain_words(label)
    assert plain_words(words) == words
    assert all(letter.isascii() and (letter.isalnum() or letter == " ") for letter in words)
    assert len(words) <= 60


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Red  car", "001_red-car.png"),
        ("", "001.png"),
        ("Größe: café", "001_grosse-cafe.png"),
        ("кот", "001.png"),
        ("🐈", "001.png"),
        ("../../etc/passwd", "001_etc-passwd.png"),
        ("a\\b:c\x00d\n", "001_a-b-c-d.png"),
        (".hidden", "001_hidden.png"),
        ("\udc80", "001.png"),
        ("x" * 300, f"001_{'x' * 60}.png"),
    ],
)
def test_a_label_becomes_a_safe_name(tmp_path, label, name):
    write_masks_folder(tmp_path / "a.masks", two(labels=[label, ""])[:1])
    assert [path.name for path in tmp_path.rglob("*.png")] == [name]
    assert os.listdir(tmp_path) == ["a.masks"]


def test_files_are_what_other_programs_expect(tmp_path):
    masks = two(labels=["cat", "2"], ids=[1000, 7])
    masks = Masks.concat([masks, masks[1:]])
    write_masks_folder(tmp_path / "a.masks", masks)
    assert sorted(os.listdir(tmp_path / "a.masks")) == ["007_2.2.png", "007_2.png", "1000_cat.png"]
    with PillowImage.open(tmp_path / "a.masks" / "1000_cat.png") as picture:
        assert (picture.mode, picture.size) == ("L", (8, 6))
        np.testing.assert_array_equal(np.asarray(picture), 255 * masks.masks[0])


def test_a_folder_takes_the_place_of_the_one_before_as_a_whole(tmp_path, monkeypatch):
    write_masks_folder(tmp_path / "a.masks", two())
    write_masks_folder(tmp_path / "a.masks", two()[1:])
    assert os.listdir(tmp_path / "a.masks") == ["002.png"]

    def broken(masks):
        yield "001.png"
        raise OSError("No space left on device")

    monkeypatch.setattr(binaries, "_file_names", broken)
    with pytest.raises(OSError, match=r"cannot write .*a\.masks: No space left on device"):
        write_masks_folder(tmp_path / "a.masks", two())
    assert os.listdir(tmp_path) == ["a.masks"]
    assert os.listdir(tmp_path / "a.masks") == ["002.png"]


def test_what_is_no_folder_of_masks_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder of masks: .*none"):
        read_masks_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="must hold a PNG for each mask, named as 001_red-car.png, but is empty"):
        read_masks_folder(tmp_path)
    write_masks_folder(tmp_path / "a", two())
    (tmp_path / "a" / ".hidden").touch()
    assert len(read_masks_folder(tmp_path / "a")) == 2
    for name in ("cat.png", "000.png", "001.txt"):
        (tmp_path / "a" / name).touch()
        with pytest.raises(ValueError, match=f"{name} must be a mask with its id in front, as 001_red-car.png"):
            read_masks_folder(tmp_path / "a")
        (tmp_path / "a" / name).unlink()


@pytest.mark.parametrize(("mode", "shade"), [("L", 7), ("RGB", (255, 255, 255))])
def test_other_pictures_in_it_are_refused_by_name(tmp_path, mode, shade):
    write_masks_folder(tmp_path / "a", two())
    PillowImage.new(mode, (8, 6), shade).save(tmp_path / "a" / "003.png")
    with pytest.raises(ValueError, match=r"003\.png must be a binary mask, one channel of 0 and 255"):
        read_masks_folder(tmp_path / "a")


def test_masks_of_one_bit_are_read_and_those_of_another_size_refused(tmp_path):
    write_masks_folder(tmp_path / "a", two())
    PillowImage.new("1", (8, 6), 1).save(tmp_path / "a" / "003.png")
    assert read_masks_folder(tmp_path / "a").areas.tolist() == [16, 6, 48]
    PillowImage.new("L", (9, 6)).save(tmp_path / "a" / "003.png")
    with pytest.raises(ValueError, match=r"must be of one size, \(6, 8\) \(h, w\), got \[6, 9\] in .*003\.png"):
        read_masks_folder(tmp_path / "a")
