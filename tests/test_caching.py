"""Features of a frozen encoder: made once a picture and view, never those of another, never more than allowed."""

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from anymask.data.images import read_image
from anymask.data.pairs import read_pairs
from anymask.models.digests import digest_of_weights
from anymask.training.caching import FeatureStore, View, digest_of_pairs, view_of
from anymask.types import Image
from standin import CELLS, Standin, write_disks

SIZE = (48, 64)
BYTES = 8 * CELLS * CELLS * 4 + 4  # of one view


@pytest.fixture
def picture(tmp_path):
    return write_disks(tmp_path, 2)[0] / "00.png"


@pytest.fixture
def store(tmp_path):
    return FeatureStore(Standin(), tmp_path / "features", most_mb=1)


def kept(store):
    return sorted(store.folder.glob("*"))


def test_features_are_those_of_the_model_and_made_once(store, picture):
    expected = store.model.encode([read_image(picture)])[0].tensors
    store.model.embedded = 0
    for _ in range(3):
        found = store.get(picture, SIZE, View())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor)
    assert store.model.embedded == 1
    again = FeatureStore(store.model, store.folder, most_mb=1)
    assert torch.equal(again.get(picture, SIZE, View())["cells"], expected["cells"])
    assert store.model.embedded == 1


def test_a_view_has_features_of_its_own(store, picture):
    image = read_image(picture)
    box = (10, 5, 50, 40)
    mirrored = Image(np.ascontiguousarray(image.pixels[:, ::-1]))
    expected = {
        View(): store.model.encode([image]),
        View(None, mirrored=True): store.model.encode([mirrored]),
        View(box): store.model.encode([image], [box]),
        View(box, mirrored=True): store.model.encode([mirrored], [box]),
    }
    for view, [features] in expected.items():
        for _ in range(2):
            assert torch.equal(store.get(picture, SIZE, view)["cells"], features.tensors["cells"])
    assert len(kept(store)) == 4


def test_other_weights_pictures_and_formats_have_other_files(store, picture):
    first = store.get(picture, SIZE, View())["cells"]
    other = FeatureStore(Standin(seed=1), store.folder, most_mb=1)
    assert not torch.equal(other.get(picture, SIZE, View())["cells"], first)
    half = FeatureStore(store.model, store.folder, most_mb=1, half=True)
    torch.testing.assert_close(half.get(picture, SIZE, View())["cells"], first.half().float(), rtol=0, atol=0)
    PillowImage.new("RGB", (64, 48), "red").save(picture)
    changed = FeatureStore(store.model, store.folder, most_mb=1)
    assert not torch.equal(changed.get(picture, SIZE, View())["cells"], first)
    assert len(kept(store)) == 4


def test_float16_takes_half_the_space_and_gives_the_same_numbers_when_new_and_when_read(store, picture):
    half = FeatureStore(store.model, store.folder, most_mb=1, half=True)
    new, read = (half.get(picture, SIZE, View())["cells"] for _ in "ab")
    assert torch.equal(new, read) and new.dtype == torch.float32
    assert half.megabytes(picture, SIZE) == pytest.approx(BYTES / 2e6)
    assert store.megabytes(picture, SIZE) == pytest.approx(BYTES / 1e6)


def test_the_folder_never_grows_over_its_limit(store, picture):
    small = FeatureStore(store.model, store.folder, most_mb=2.5 * BYTES / 1e6)
    views = [View(), View(None, mirrored=True), View((0, 0, 30, 30))]
    first = [small.get(picture, SIZE, view)["cells"] for view in views]
    assert len(kept(small)) == 2
    assert torch.equal(small.get(picture, SIZE, views[2])["cells"], first[2])
    again = FeatureStore(store.model, store.folder, most_mb=2.5 * BYTES / 1e6)
    again.get(picture, SIZE, View((0, 0, 20, 20)))
    assert len(kept(again)) == 2


def test_a_broken_file_is_made_again(store, picture):
    expected = store.get(picture, SIZE, View())["cells"]
    [file] = kept(store)
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(store.get(picture, SIZE, View())["cells"], expected)
    assert file.stat().st_size > 50


def test_views_are_the_image_its_mirror_image_and_parts_of_both():
    assert [view_of(SIZE, i, seed=(0, 7)) for i in (0, 1)] == [View(), View(None, mirrored=True)]
    parts = [view_of(SIZE, i, seed=(0, 7)) for i in range(2, 40)]
    assert parts == [view_of(SIZE, i, seed=(0, 7)) for i in range(2, 40)]
    assert len({part.crop_box for part in parts}) == len(parts)
    assert parts[0] != view_of(SIZE, 2, seed=(0, 8))
    assert {part.mirrored for part in parts} == {True, False}
    for part in parts:
        x0, y0, x1, y1 = part.crop_box
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 48
        assert x1 - x0 >= 32 and y1 - y0 >= 24


def test_digests_tell_weights_and_data_apart(tmp_path):
    assert digest_of_weights(Standin().network) == digest_of_weights(Standin().network)
    assert digest_of_weights(Standin().network) != digest_of_weights(Standin(seed=1).network)
    images, masks = write_disks(tmp_path, 3)
    before = digest_of_pairs(read_pairs(images, masks).rows)
    moved = read_pairs(images.rename(tmp_path / "elsewhere"), masks).rows
    assert digest_of_pairs(moved) == before
    assert len({before, digest_of_pairs(moved[:2]), digest_of_pairs(moved[1:])}) == 3
