"""Classes of a case study: lists are obeyed, the rest is drawn by the seed, and what is wrong is named."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PillowImage

from anymask.adapting.classes import read_class, split_stems
from anymask.adapting.known_sets import KNOWN
from standin import write_disks


@pytest.fixture
def disks(tmp_path):
    write_disks(tmp_path / "disks", 9)
    return tmp_path / "disks"


def stems(pairs):
    return [pair.image.stem for pair in pairs.rows]


def write_list(folder, part, *names):
    (folder / f"{part}.txt").write_text("\n".join(names) + "\n")


def refused(kind, *words, **options):
    with pytest.raises(kind) as caught:
        read_class(*map(str, words), **options)
    return str(caught.value)


def test_lists_are_obeyed_and_the_first_of_each_are_taken(disks):
    write_list(disks, "train", "05", "03", "04", "00")
    write_list(disks, "val", "08", "01")
    write_list(disks, "spare", "02", "06", "07")
    found = read_class("disk", str(disks), max_train=3, max_val=1)
    assert stems(found.train) == ["05", "03", "04"]
    assert stems(found.val) == ["08"]
    assert stems(found.spare) == ["02", "06", "07"]
    assert (found.failed, found.remarks()) == (False, [])


def test_without_lists_the_seed_draws(disks):
    found = read_class("disk", str(disks), max_train=4, max_val=2, seed=1)
    parts = [stems(part) for part in (found.train, found.val, found.spare)]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert len({stem for part in parts for stem in part}) == 8
    again = read_class("disk", str(disks), max_train=4, max_val=2, seed=1)
    assert stems(again.train) == parts[0]
    assert stems(read_class("disk", str(disks), max_train=4, max_val=2, seed=2).train) != parts[0]


def test_few_images_are_shared_out():
    parts = split_stems(list("abcdefg"), {}, max_train=50, max_val=20, seed=0)
    assert {part: len(names) for part, names in parts.items()} == {"train": 5, "val": 2, "spare": 0}
    assert {part: len(names) for part, names in split_stems("ab", {}, 50, 20, 0).items()} == {
        "train": 1,
        "val": 1,
        "spare": 0,
    }


def test_one_list_leaves_the_others_to_the_seed(disks):
    write_list(disks, "val", "03", "04")
    found = read_class("disk", str(disks))
    assert stems(found.val) == ["03", "04"]
    assert sorted(stems(found.train)) == ["00", "01", "02", "05", "06", "07", "08"]
    assert found.spare is None
    (disks / "val.txt").unlink()
    write_list(disks, "train", "03", "04")
    found = read_class("disk", str(disks), max_val=3)
    assert stems(found.train) == ["03", "04"]
    assert len(found.val) == 3
    assert not {"03", "04"} & set(stems(found.val))


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_disks(tmp_path / "one", 1)
    assert refused(ValueError, "disk", tmp_path / "one") == (
        f"the class 'disk' cannot be split: {tmp_path / 'one'} has 1 image with a mask, and none is left for train: it"
        " takes at least one to learn from and one to judge by"
    )


@pytest.mark.parametrize("inside", ["images", "masks"])
def test_a_missing_folder_is_named(disks, inside):
    (disks / inside).rename(disks / "elsewhere")
    assert f"the class 'disk' needs {inside}/ in {disks}, but has none" in refused(FileNotFoundError, "disk", disks)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    message = refused(FileNotFoundError, "disk", nowhere)
    assert message == (
        "the class 'disk' must be a folder with images/ and masks/ or one of the known sets camo, cod10k, kvasir-seg,"
        f" got {nowhere}: there is no such folder"
    )
    nowhere.write_text("")
    assert refused(FileNotFoundError, "disk", nowhere).endswith("it is a file")


def test_names_without_an_image_are_listed(disks):
    write_list(disks, "train", "00", "dog", "01", "cat")
    assert refused(ValueError, "disk", disks) == (
        f"{disks / 'train'}.txt names images that are not in {disks / 'images'}: dog, cat"
    )
    write_list(disks, "train", *(f"cat{i}" for i in range(23)))
    assert refused(ValueError, "disk", disks).endswith("cat18, cat19 and 3 more")


def test_lists_must_not_share_names(disks):
    write_list(disks, "train", "00", "01", "02")
    write_list(disks, "val", "02", "03", "01")
    assert refused(ValueError, "disk", disks) == (
        f"train.txt and val.txt in {disks} must not share images, got 02, 01 in both"
    )


def test_bad_files_are_left_out_and_told(disks):
    write_list(disks, "train", "00", "01", "02", "03")
    write_list(disks, "val", "04")
    (disks / "images/00.png").write_bytes(b"no picture")
    (disks / "masks/01.png").unlink()
    PillowImage.fromarray(np.full((48, 64), 255, np.uint8)).save(disks / "masks/02.png")
    found = read_class("disk", str(disks))
    assert stems(found.train) == ["03"]
    assert found.failed
    assert [line.split(":")[:2] for line in found.remarks()] == [
        ["disk", " 1 without a mask, left out"],
        ["disk", " failed"],
        ["disk", " failed"],
    ]
    assert "all white" in found.remarks()[-1]


class StandinSet:
    """What `datasets.load_dataset` gives: rows of pictures, decoded unless they are cast."""

    def __init__(self, known, count):
        self.known, self.count, self.decoded = known, count, {known.image, known.mask}

    def cast_column(self, column, feature):
        assert feature.decode is False
        self.decoded.remove(column)
        return self

    def __iter__(self):
        assert not self.decoded
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            mask = np.zeros((24, 32), np.uint8)
            mask[5:15, 8:20] = 255
            yield {
                self.known.image: {"bytes": encoded(rng.integers(0, 255, (24, 32, 3), np.uint8), "JPEG"), "path": None},
                self.known.mask: {"bytes": encoded(mask, "PNG"), "path": "mask.png"},
            }


def encoded(pixels, kind):
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`; what was asked of it."""
    asked = []

    def load_dataset(hub_id, split):
        asked.append((hub_id, split))
        return StandinSet(next(one for one in KNOWN.values() if one.hub_id == hub_id), 6)

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    module.Image = lambda decode: SimpleNamespace(decode=decode)
    module.exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_set_is_fetched_once(name, hub, tmp_path):
    found = read_class("thing", name, max_train=3, max_val=2, cache=tmp_path)
    assert (len(found.train), len(found.val), len(found.spare)) == (3, 2, 1)
    assert found.train.rows[0].masks.areas.tolist() == [120]
    assert sorted(path.suffix for path in (tmp_path / name / "images").iterdir()) == [".jpeg"] * 6
    assert stems(read_class("thing", name, max_train=3, max_val=2, cache=tmp_path).train) == stems(found.train)
    assert hub == [(KNOWN[name].hub_id, "train")]


def test_a_folder_goes_before_a_known_set_of_its_name(hub, tmp_path, monkeypatch):
    write_disks(tmp_path / "camo", 3)
    monkeypatch.chdir(tmp_path)
    assert len(read_class("thing", "camo").train) == 2
    assert hub == []


def test_an_interrupted_fetch_leaves_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(StandinSet, "__iter__", lambda _: (_ for _ in [{"image": {"bytes": b"torn", "path": None}}]))
    with pytest.raises(OSError, match="cannot identify image file"):
        read_class("thing", "camo", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_datasets_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refused(ImportError, "thing", "camo", cache=tmp_path) == (
        "camo is fetched with datasets, not installed here: pip install 'anymask[study]', or put its pictures into"
        " DIR/images and DIR/masks, and give NAME=DIR"
    )


@pytest.mark.parametrize("kind", ["connection", "library"])
def test_without_network_it_says_what_to_do(kind, hub, monkeypatch, tmp_path):
    def load_dataset(hub_id, split):
        error = ConnectionError if kind == "connection" else sys.modules["datasets"].exceptions.DatasetsError
        raise error(f"Couldn't reach {hub_id}\nand more lines")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", load_dataset)
    assert refused(OSError, "thing", "kvasir-seg", cache=tmp_path) == (
        "cannot fetch kvasir-seg (kowndinya23/Kvasir-SEG): Couldn't reach kowndinya23/Kvasir-SEG; go online, or put its"
        " pictures into DIR/images and DIR/masks, and give NAME=DIR"
    )
