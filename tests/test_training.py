"""Training the pocket model: learns, resumes, repeats itself, trains only what it should."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from anymask.models.pocket_network import CONFIGS, PocketNetwork
from anymask.models.pocket_text import TextTower, save_text_tower
from anymask.models.protocol import CheckpointError
from anymask.ops import rle
from anymask.training.loop import Curve, MovingAverage, load_checkpoint, save_checkpoint, trapezoid
from anymask.training.pictures import read_pictures
from anymask.training.pocket import PocketSettings, load_imagenet, train_pocket
from anymask.training.regions import find_regions
from anymask.training.samples import PocketSamples, SampleSettings
from anymask.training.simulation import BOX, PhraseTable, corrected, empty_prompts, first_prompts
from anymask.training.vocabulary import GROUPS, SYNONYMS, words
from tiny import TINY_TEXT, seed_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with a bright disk ("ball") and a grey square ("box") on dark noise."""
    folder = tmp_path_factory.mktemp("set")
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(8):
        pixels = rng.integers(0, 60, (80, 96, 3), dtype=np.uint8)
        disk, square = np.zeros((80, 96), np.uint8), np.zeros((80, 96), np.uint8)
        cv2.circle(disk, (int(rng.integers(20, 40)), int(rng.integers(20, 60))), 14, 1, -1)
        x, y = int(rng.integers(55, 70)), int(rng.integers(10, 50))
        square[y : y + 20, x : x + 20] = 1
        pixels[disk > 0], pixels[square > 0] = (250, 240, 200), (120, 130, 140)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{i}.png", "height": 80, "width": 96, "source": "toys"})
        for category, mask in ((1, disk), (2, square)):
            encoded = rle.encode(mask[None].astype(bool))[0]
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": category, "segmentation": encoded}
            )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "box"}],
        "sources": [{"name": "toys", "text_exhaustive": True, "names": ["ball", "box", "tree"]}],
    }
    (folder / "set.json").write_text(json.dumps(document))
    tower = TextTower(TINY_TEXT)
    seed_weights(tower)
    save_text_tower(tower, folder / "text.safetensors")
    return folder


def settings(data: Path, output: Path, **changes: object) -> PocketSettings:
    fixed = PocketSettings(
        images=data, annotations=data / "set.json", output=output, text=data / "text.safetensors", size="tiny", side=64
    )
    small = {
        "batch": 2,
        "objects": 2,
        "names": 2,
        "workers": 0,
        "warmup": 5,
        "decay": 5,
        "frozen_steps": 2,
        "steps": 6,
        "small_side": 64,
        "small_steps": 0,
    }
    return replace(fixed, **{**small, "learning_rate": 3e-3, **changes})  # type: ignore[arg-type]


def test_a_few_steps_cut_the_loss(data: Path, tmp_path: Path) -> None:
    records = list(train_pocket(settings(data, tmp_path, steps=60, val_images=data, val_annotations=data / "set.json")))
    losses = [record.metrics["loss"] for record in records]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert {"val_box", "val_click1", "val_text"} <= set(records[-1].metrics)
    with safe_open(tmp_path / "pocket.safetensors", framework="pt") as file:
        assert "network" in file.metadata()


def test_a_run_stopped_and_resumed_gives_the_same_weights(data: Path, tmp_path: Path) -> None:
    list(train_pocket(settings(data, tmp_path / "whole")))
    for record in train_pocket(settings(data, tmp_path / "cut", save_seconds=0)):
        if record.step == 3:
            break
    rest = [record.step for record in train_pocket(settings(data, tmp_path / "cut"))]
    assert rest[-1] == 6 and rest[0] in (3, 4)
    whole, cut = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert whole is not None and cut is not None
    for name, tensor in whole["network"].items():
        torch.testing.assert_close(cut["network"][name], tensor, atol=1e-5, rtol=1e-4)


def test_the_encoder_rests_at_first_then_learns(data: Path, tmp_path: Path) -> None:
    def encoder(output: Path) -> torch.Tensor:
        state = load_checkpoint(output / "checkpoint.pt")
        assert state is not None
        return torch.cat([v.flatten() for k, v in state["network"].items() if k.startswith("encoder") and v.ndim == 4])

    for name, frozen in (("a", 1), ("b", 2), ("c", 0)):
        list(train_pocket(settings(data, tmp_path / name, steps=1, frozen_steps=frozen)))
    assert torch.equal(encoder(tmp_path / "a"), encoder(tmp_path / "b"))
    assert not torch.equal(encoder(tmp_path / "a"), encoder(tmp_path / "c"))


def test_a_sample_is_a_function_of_seed_and_index(data: Path) -> None:
    pictures = read_pictures(data, data / "set.json")
    first, second = (
        PocketSamples(pictures, {"ball": [0], "box": [1], "tree": [2]}, SampleSettings(side=64)) for _ in "ab"
    )
    for i in (0, 7):
        for name, tensor in first[i].items():
            assert torch.equal(tensor, second[i][name])
    assert not torch.equal(first[0]["pixels"], first[1]["pixels"])


def test_samples_keep_points_on_objects_and_names_honest(data: Path) -> None:
    pictures = read_pictures(data, data / "set.json")
    samples = PocketSamples(pictures, {"ball": [0], "box": [1], "tree": [2]}, SampleSettings(side=64, names=3))
    for i in range(40):
        sample = samples[i]
        for target, (x, y), box in zip(sample["targets"], sample["points"].tolist(), sample["boxes"], strict=True):
            assert target[min(15, int(y / 4)), min(15, int(x / 4))] > 0
            assert box[2] > box[0] and box[3] > box[1]
        for phrase, present, union in zip(sample["phrases"], sample["present"], sample["unions"], strict=True):
            assert (present == 1) == bool(union.max() > 0) or present == -1
            assert not (phrase == 2 and present == 1)


def test_sources_can_be_left_out(data: Path) -> None:
    assert read_pictures(data, data / "set.json", exclude_sources=["toys"]) == []


def test_names_of_a_foreign_source_count_as_absent(data: Path, tmp_path: Path) -> None:
    document = json.loads((data / "set.json").read_text())
    sources = ("nuclei_dsb2018", "feral_cats", "toys")
    for image in document["images"]:
        image["source"] = sources[image["id"] % 3]
    names = {0: "nucleus", 1: "kitten", 2: "ball"}
    document["categories"] = [{"id": i, "name": name} for i, name in names.items()]
    for annotation in document["annotations"]:
        annotation["category_id"] = annotation["image_id"] % 3
    document["sources"] = [{"name": source, "text_exhaustive": False} for source in sources]
    (tmp_path / "set.json").write_text(json.dumps(document))
    absent = {picture.source: picture.absent for picture in read_pictures(data, tmp_path / "set.json")}
    assert absent == {"nuclei_dsb2018": ("kitten",), "feral_cats": ("nucleus",), "toys": ()}


def test_unlabelled_regions_are_boxed_and_never_named(data: Path) -> None:
    pictures = read_pictures(data, data / "set.json")
    hidden = [replace(picture, rles=picture.rles[:1], names=picture.names[:1]) for picture in pictures]  # no square
    samples = PocketSamples(hidden, {"ball": [0]}, SampleSettings(side=64, regions=0.5, whole_image=1.0, paste=0.0))
    found = squares = 0
    for i in range(20):
        sample = samples[i]
        boxes = sample["boxes"][sample["only_boxed"]]
        found += len(boxes)
        assert (sample["object_phrases"][sample["only_boxed"]] == -1).all()
        assert set(sample["phrases"].tolist()) <= {-1, 0}
        widths = (boxes[:, 2] - boxes[:, 0]) * 96 / 64
        squares += int(((widths > 14) & (widths < 28)).sum())
    assert 20 < found < 100 and squares > 0.4 * found  # the rest are specks of the noise
    assert not PocketSamples(hidden, {"ball": [0]}, SampleSettings(side=64, regions=0.0))[0]["only_boxed"].any()


def test_a_run_goes_on_only_as_it_began(data: Path, tmp_path: Path) -> None:
    list(train_pocket(settings(data, tmp_path, steps=1)))
    with pytest.raises(ValueError, match="has seed 0: give the same"):
        next(train_pocket(settings(data, tmp_path, seed=9)))
    assert [record.step for record in train_pocket(settings(data, tmp_path, steps=2))] == [2]


def test_a_set_without_a_visible_object_is_refused(data: Path, tmp_path: Path) -> None:
    document = json.loads((data / "set.json").read_text())
    speck = np.zeros((1, 80, 96), bool)
    speck[0, 3, 3] = True
    for annotation in document["annotations"]:
        annotation["segmentation"] = rle.encode(speck)[0]
    (tmp_path / "specks.json").write_text(json.dumps(document))
    pictures = read_pictures(data, tmp_path / "specks.json")
    with pytest.raises(ValueError, match="large enough to be seen at 64 pixels"):
        PocketSamples(pictures, {}, SampleSettings(side=64, regions=0.0))[0]
    (tmp_path / "empty.json").write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(ValueError, match="at least one annotated object"):
        next(train_pocket(settings(data, tmp_path / "run", annotations=tmp_path / "empty.json")))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no COCO file: it has no images"):
        read_pictures(data, tmp_path / "other.json")


def test_training_without_scikit_image_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anymask.training.pocket.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"anymask\[train\]"):
        next(train_pocket(settings(data, tmp_path)))


def test_no_region_is_a_labelled_object_or_noise() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (120, 160, 3), dtype=np.uint8)
    pixels[20:60, 20:60], pixels[70:110, 90:150] = (200, 40, 40), (40, 40, 200)
    red, blue = np.zeros((2, 120, 160), bool)
    red[20:60, 20:60], blue[70:110, 90:150] = True, True
    [found] = rle.decode(find_regions(pixels, red[None]), (120, 160))
    assert (found & blue).sum() / (found | blue).sum() > 0.85
    assert find_regions(pixels, np.stack([red, blue])) == ()
    assert find_regions(np.full((40, 40, 3), 90, np.uint8), np.zeros((0, 40, 40), bool)) == ()


def test_synonyms_and_groups_mean_what_they_say(data: Path, tmp_path: Path) -> None:
    document = json.loads((data / "set.json").read_text())
    document["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document["sources"] = [{"name": "coco_full", "text_exhaustive": True, "names": ["cat", "dog", "car", "cow"]}]
    for image in document["images"]:
        image["source"] = "coco_full"
    (tmp_path / "set.json").write_text(json.dumps(document))
    vocabulary = words(["cat", "dog", "car", "cow"])
    assert {"cat", "kitty", "animal", "vehicle"} <= set(vocabulary) and "food" not in vocabulary
    phrases = {word: [row] for row, word in enumerate(vocabulary)}
    changed = SampleSettings(side=64, names=3, synonyms=0.5, groups=0.5, paste=0.0, regions=0.0, whole_image=1.0)
    plain = replace(changed, synonyms=0.0, groups=0.0)
    pictures = read_pictures(data, tmp_path / "set.json")
    asked = set()
    for i in range(60):
        sample = PocketSamples(pictures, phrases, changed)[i]
        whole = sample["targets"].amax(0)  # both animals are among the objects drawn, or one of them
        for row, union, present in zip(sample["phrases"], sample["unions"], sample["present"], strict=True):
            word = vocabulary[row] if row >= 0 else None
            asked.add(word)
            if word == "animal":  # an absent cow never stands for it: cat and dog are there
                assert present == 1 and (union >= whole).all()
            if word == "vehicle":
                assert present == 0 and union.max() == 0
            if word in ("kitty", "puppy"):
                assert present == 1 and union.sum() > 0
        for row in PocketSamples(pictures, phrases, plain)[i]["phrases"]:
            assert row < 0 or vocabulary[row] in ("cat", "dog", "car", "cow")
    assert {"animal", "vehicle", "kitty"} <= asked


def test_every_synonym_is_another_word() -> None:
    for name, synonyms in SYNONYMS.items():
        assert synonyms and name not in synonyms and all(word == word.strip() for word in synonyms)
    for group, members in GROUPS.items():
        assert group not in members and len(set(members)) == len(members) > 1


def test_a_correction_clicks_the_largest_error(data: Path) -> None:
    table = PhraseTable(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool))
    target = torch.zeros(1, 16, 16)
    target[0, 4:12, 4:12] = 1
    predicted = torch.where(target > 0, 5.0, -5.0)
    predicted[0, 4:12, 8:12] = -5.0  # the right half was missed
    rng = np.random.default_rng(0)
    after = corrected(empty_prompts(1, 16, table), predicted, target, rng)
    assert after.labels.tolist() == [[-1, 1]] and after.has_mask.all()
    assert abs(after.points[0, 1, 0] - 4 * 10) < 4
    right = corrected(empty_prompts(1, 16, table), torch.where(target > 0, 5.0, -5.0), target, rng)
    assert right.labels.tolist() == [[-1, -1]]


def test_every_kind_of_first_prompt_occurs() -> None:
    table = PhraseTable(torch.ones(1, 2, 16), torch.ones(1, 2, dtype=torch.bool))
    n = 200
    prompts, kinds = first_prompts(
        torch.ones(n, 16, 16),
        torch.zeros(n, 2),
        torch.ones(n, 4),
        torch.zeros(n, dtype=torch.long),
        torch.arange(n) < 20,
        table,
        np.random.default_rng(0),
    )
    assert set(kinds[20:].tolist()) == {0, 1, 2, 3} and set(kinds[:20].tolist()) == {BOX}
    said = torch.stack([(prompts.labels[:, 0] == 1), prompts.has_box, prompts.has_mask]).sum(0)
    assert (said == 1).all() and torch.equal(prompts.has_text, kinds == 3)


def test_the_schedule_rises_stays_and_falls() -> None:
    factors = [trapezoid(step, 100, 10, 20) for step in range(100)]
    assert (
        factors[0] == pytest.approx(0.1) and factors[50] == 1 and factors[90] == pytest.approx(0.5) and factors[99] > 0
    )


def test_the_moving_average_follows() -> None:
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    for step in range(200):
        average.update(model, step)
    torch.testing.assert_close(average.model.weight, torch.ones(2, 2), atol=1e-3, rtol=0)


def test_checkpoints_and_curves_survive(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.pt") is None
    save_checkpoint(tmp_path / "c.pt", {"optimizer": {}, "step": 3, "x": torch.ones(2)})
    state = load_checkpoint(tmp_path / "c.pt")
    assert state is not None and state["step"] == 3
    curve = Curve(tmp_path / "c.csv")
    for step in (1, 2, 3):
        curve.add({"step": step, "loss": step * 0.5})
    Curve(tmp_path / "c.csv", resume_at=2).add({"step": 3, "loss": 9, "val": 1})
    assert (tmp_path / "c.csv").read_text().split() == ["step,loss,val", "1,0.5,", "2,1.0,", "3,9,1"]


def test_imagenet_weights_load_in_order_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    donor, taker = (PocketNetwork(CONFIGS["tiny"]).encoder for _ in "ab")
    seed_weights(donor)
    torch.save(
        {f"other.{i}": v for i, v in enumerate(donor.state_dict().values()) if v.is_floating_point()},
        tmp_path / "w.pth",
    )
    load_imagenet(taker, tmp_path / "w.pth")
    for name, tensor in donor.state_dict().items():
        assert torch.equal(taker.state_dict()[name], tensor), name
    torch.save({"x": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="bad.pth does not fit"):
        load_imagenet(taker, tmp_path / "bad.pth")


def test_the_small_crop_comes_first(data: Path, tmp_path: Path) -> None:
    records = train_pocket(settings(data, tmp_path, steps=4, side=96, small_side=64, small_steps=2))
    assert [record.step for record in records] == [1, 2, 3, 4]
    with safe_open(tmp_path / "pocket.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["network"])["image_size"] == 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be between 0 and 1"),
        ({"val_images": Path()}, "needs both"),
        ({"size": "pocket"}, "needs a text tower 128 wide"),
        ({"exclude_source": ("nosuch",)}, "sources to leave out must be in .*: nosuch is none of"),
        ({"device": "abacus"}, "device must be one of"),
    ],
)
def test_nonsense_is_refused(data: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(iter(train_pocket(settings(data, tmp_path, **changes))))


def test_files_that_are_no_weights_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is no whole checkpoint"):
        next(iter(train_pocket(settings(data, tmp_path))))


def test_sizes_are_checked(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="side a multiple of 32, got tiny, 50"):
        next(iter(train_pocket(settings(data, tmp_path, side=50))))
