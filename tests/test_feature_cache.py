"""Features made once a model, picture and crop, wherever they are kept; never those of another, nor too many."""

import logging
import os

import numpy as np
import pytest
import torch

from anymask.models import feature_cache
from anymask.models.feature_cache import FeatureCache
from anymask.types import Image
from standin import Standin
from tiny import tiny_model
from tiny_families import tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3

CROP = (5, 4, 37, 30)


def picture(seed=0, size=(48, 64)):
    return Image(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def same(one, other):
    assert one.model == other.model and one.frame == other.frame and one.tensors.keys() == other.tensors.keys()
    return all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def files(folder):
    return sorted(folder.glob("*"))


@pytest.mark.parametrize("family", [tiny_model, tiny_sam, tiny_sam_hq, tiny_mobile, tiny_sam2, tiny_sam3])
@pytest.mark.parametrize("crop_box", [None, CROP])
def test_features_come_back_from_memory_and_disk_as_the_model_gave_them(family, crop_box, tmp_path, monkeypatch):
    model, image = family(), picture()
    expected = model.encode([image], crop_box and [crop_box])[0]
    cache = FeatureCache(tmp_path)
    assert same(cache.encode(model, image, crop_box), expected)
    assert cache.encode(model, image, crop_box) is cache.encode(model, image, crop_box)
    monkeypatch.setattr(type(model), "embed", None)  # from here on it is read
    assert same(FeatureCache(tmp_path).encode(model, Image(image.pixels.copy()), crop_box), expected)


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_picture_crop_and_model_is_encoded_once(on_disk, tmp_path):
    cache, models, images = (
        FeatureCache(tmp_path if on_disk else None),
        [Standin(), Standin(seed=1)],
        [picture(), picture(1)],
    )
    seen = [(model, image, crop) for model in models for image in images for crop in (None, CROP, (0, 0, 64, 40))]
    found = [cache.encode(*one) for one in seen for _ in "ab"]
    assert [model.embedded for model in models] == [6, 6]
    for one, (model, image, crop) in zip(found[::2], seen, strict=True):
        assert same(one, model.encode([image], crop and [crop])[0])
    assert len(files(tmp_path)) == (12 if on_disk else 0)


def test_memory_holds_the_last_used(tmp_path):
    cache, model, images = FeatureCache(held=2), Standin(), [picture(seed) for seed in range(3)]
    for i in (0, 1, 0, 2, 0):
        cache.encode(model, images[i])
    assert model.embedded == 3
    cache.encode(model, images[1])
    assert model.embedded == 4


def test_many_crops_do_not_push_their_image_out_and_the_whole_as_a_crop_is_the_image():
    cache, model, image = FeatureCache(held=2), Standin(), picture()
    whole = cache.encode(model, image)
    for x in range(5):
        cache.encode(model, image, (x, 0, 40, 30))
    assert cache.encode(model, image) is whole and cache.encode(model, image, (0, 0, 64, 48)) is whole
    assert model.embedded == 6
    assert same(model.encode([image], [(0, 0, 64, 48)])[0], whole)
    cache.encode(model, image, (4, 0, 40, 30)), cache.encode(model, image, (0, 0, 40, 30))
    assert model.embedded == 8


def test_an_array_that_was_thrown_away_is_not_taken_for_a_new_one():
    cache, model = FeatureCache(), Standin()
    for seed in range(30):
        image = picture(seed)
        assert same(cache.encode(model, image), model.encode([image])[0])
        del image


def test_another_input_size_has_features_of_its_own(tmp_path):
    cache, model, image = FeatureCache(tmp_path), tiny_model(), picture()
    first = cache.encode(model, image)
    model.set_input_size((64, 96))
    assert cache.encode(model, image).frame.input_size == (64, 96) != first.frame.input_size
    assert len(files(tmp_path)) == 2


def test_a_broken_file_is_made_anew(tmp_path):
    model, image = Standin(), picture()
    expected = FeatureCache(tmp_path).encode(model, image)
    [file] = files(tmp_path)
    whole = file.read_bytes()
    for broken in (b"", whole[:40], whole[:-4], b"nonsense" * 9):
        file.write_bytes(broken)
        assert same(FeatureCache(tmp_path).encode(model, image), expected)
        assert file.read_bytes() == whole


def test_the_folder_keeps_what_was_used_last(tmp_path):
    model, images = Standin(), [picture(seed) for seed in range(4)]
    FeatureCache(tmp_path).encode(model, images[0])
    size = files(tmp_path)[0].stat().st_size
    cache = FeatureCache(tmp_path, most_mb=3.5 * size / 1e6, held=0)
    for i in range(3):
        cache.encode(model, images[i])
        for age, file in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns, reverse=True)):
            os.utime(file, ns=(10**18 - age * 10**9, 10**18 - age * 10**9))  # clocks of file systems are coarse
    cache.encode(model, images[0])  # used again: now the second is the oldest
    cache.encode(model, images[3])
    assert len(files(tmp_path)) == 3
    model.embedded = 0
    cache.encode(model, images[0])
    assert model.embedded == 0
    cache.encode(model, images[1])
    assert model.embedded == 1
    assert not files(tmp_path / "none") and FeatureCache(tmp_path / "none", most_mb=0).encode(model, images[0])
    assert not files(tmp_path / "none")


def test_tensors_are_made_once_a_key_and_read_from_disk(tmp_path):
    made = []

    def make(value):
        made.append(value)
        return {"x": torch.full((2, 3), float(value))}

    for folder in (None, tmp_path):
        cache = FeatureCache(folder)
        for value in (1, 2, 1, 2):
            assert torch.equal(cache.tensors(f"key {value}", lambda value=value: make(value))["x"], make(value)["x"])
            made.pop()
        assert made == [1, 2]
        made.clear()
    assert torch.equal(FeatureCache(tmp_path).tensors("key 2", lambda: make(9))["x"], torch.full((2, 3), 2.0))
    assert made == []


def test_memory_for_tensors_is_bounded(monkeypatch):
    monkeypatch.setattr(feature_cache, "TENSORS_MB", 24e-6)  # one of two
    cache, made = FeatureCache(), []
    for key in "abba":
        cache.tensors(key, lambda key=key: made.append(key) or {"x": torch.zeros(6)})
    assert made == ["a", "b", "a"]


def test_a_folder_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    model, image = Standin(), picture()
    cache = FeatureCache(tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING, "anymask"):
        assert same(cache.encode(model, image), model.encode([image])[0])
    assert "features are not kept:" in caplog.text and "cannot write" in caplog.text


@pytest.mark.parametrize("wrong", [{"held": -1}, {"most_mb": -1.0}])
def test_negative_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="held and most_mb must be 0 or more, got"):
        FeatureCache(**wrong)


def test_files_that_are_not_its_own_are_left_alone(tmp_path):
    weights = tmp_path / "my_weights.safetensors"
    weights.write_bytes(b"x" * 200_000)
    cache = FeatureCache(tmp_path, most_mb=0.1)
    for i in range(3):
        cache.tensors(f"key {i}", lambda: {"a": torch.zeros(20_000)})
    assert weights.stat().st_size == 200_000
    assert sum(file.stat().st_size for file in tmp_path.glob("*.features.safetensors")) <= 100_000
