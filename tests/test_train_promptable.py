"""Fine-tuning: learns, trains only what it should, resumes exactly, keeps the best, and says what goes wrong."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file
from transformers import SamConfig, SamModel

import tiny_families
from anymask.cli.main import main
from anymask.data.images import read_image
from anymask.evaluation.reports import read_report
from anymask.models.decode import PromptTensors
from anymask.models.load import load
from anymask.models.protocol import CheckpointError
from anymask.models.sam import Sam
from anymask.prompting import predict
from anymask.training import interaction
from anymask.training import promptable as recipe
from anymask.training.examples import Examples, large_enough
from anymask.training.loop import load_checkpoint
from anymask.training.promptable import FinetuneSettings, Finetuning, train_promptable
from anymask.types import Frame, Prompt
from oracles import Oracle, write_set
from standin import CELLS, SIDE, Standin, write_disks


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    return write_disks(tmp_path_factory.mktemp("disks"), 20)


@pytest.fixture
def standin(monkeypatch):
    """Every model that is loaded is a new stand-in; the list of those that were."""
    loaded = []

    def load_standin(model, device, **__):
        loaded.append(Standin(seed=int(model)))
        return loaded[-1]

    monkeypatch.setattr(recipe, "load", load_standin)
    return loaded


def settings(disks, output, **changes):
    small = {"model": "0", "steps": 12, "warmup": 3, "decay_share": 0.3, "validate_every": 5, "learning_rate": 3e-3}
    given = {"images": disks[0], "masks": disks[1], "output": output, "objects": 2}
    return FinetuneSettings(**{**given, **small, **changes})


def state_of(folder):
    state = load_checkpoint(folder / "checkpoint.pt")
    assert state is not None
    return state


# --- learning


def test_a_tiny_random_sam_learns_disks(disks, tmp_path, monkeypatch):
    sizes = {"image_size": 64, "patch_size": 8}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64, "window_size": 4}
    vision |= {"global_attn_indexes": [1], "output_channels": 32, "num_pos_feats": 16}
    decoder = {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 64, "iou_head_hidden_dim": 32}
    prompts = {"hidden_size": 32, "mask_input_channels": 4}
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={**vision, **sizes}, prompt_encoder_config={**prompts, **sizes}, mask_decoder_config=decoder
    )
    monkeypatch.setattr(recipe, "load", lambda *_, **__: Sam(SamModel(config)))
    wanted = {"learn": ("all",), "steps": 80, "learning_rate": 1e-2, "encoder_rate": 1.0, "average": 0.9}
    wanted |= {"decay_share": 0.75, "objects": 1, "views": 2, "val_share": 0.2, "validate_every": 80}
    *_, last = train_promptable(settings(disks, tmp_path, **wanted))
    assert last.metrics["box_miou"] > 0.8
    assert last.metrics["click1_miou"] > 0.8
    monkeypatch.undo()
    image, prompt = read_image(disks[0] / "00.png"), Prompt.point(32, 24)
    saved = load(tmp_path / "model", "cpu")
    assert isinstance(saved, Sam)
    assert len(predict(saved, saved.encode([image])[0], [prompt])) == 1


@pytest.mark.parametrize("family", ["sam", "sam_hq", "mobile", "sam2", "edgetam"])
@pytest.mark.parametrize("learn", ["decoder", "all"])
def test_every_family_is_trained_and_saved_so_that_load_reads_it(disks, tmp_path, monkeypatch, family, learn):
    model = getattr(tiny_families, f"tiny_{family}")()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    monkeypatch.setattr(recipe, "load", lambda *_, **__: model)
    small = {"learn": (learn,), "steps": 2, "warmup": 1, "batch": 2, "objects": 1, "val_share": 0}
    *_, last = train_promptable(settings(disks, tmp_path, **small, average=0.0))
    assert last.step == 2 and np.isfinite(last.metrics["loss"])
    monkeypatch.undo()
    saved, image = load(tmp_path / "model", "cpu"), read_image(disks[0] / "00.png")
    asked = [[Prompt.box(10, 10, 40, 30), Prompt.point(20, 20)]]
    ours, theirs = (one.decode(one.encode([image]), asked)[0].logits for one in (model, saved))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    after = model.network.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert any("mask_decoder" in name for name in changed)
    assert any("vision_encoder" in name for name in changed) == (learn == "all")


def test_learning_cuts_the_loss_and_raises_the_scores(disks, tmp_path, standin):
    run = Finetuning(settings(disks, tmp_path, learn=("all",), steps=60, learning_rate=1e-2, encoder_rate=1.0))
    records = list(run.steps())
    assert [record.step for record in records] == list(range(61))
    losses = [record.metrics["loss"] for record in records[1:]]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    before, after = run.standing.before, run.standing.best
    assert after["box_miou"] > before["box_miou"] + 0.2
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5 * i for i in range(1, 13)]
    report = read_report(tmp_path / "report.json")
    assert report.metrics["box_miou"] == pytest.approx(after["box_miou"], abs=1e-5)
    assert report.metrics["box_miou_before"] == pytest.approx(before["box_miou"], abs=1e-5)
    assert (report.metrics["train_images"], report.metrics["val_images"]) == (18, 2)


@pytest.mark.parametrize("learn", [("decoder",), ("prompt_encoder",), ("decoder", "prompt_encoder"), ("all",)])
def test_only_what_should_learn_changes(disks, tmp_path, standin, learn):
    run = Finetuning(settings(disks, tmp_path, learn=learn, val_share=0))
    list(run.steps())
    parts = ("encoder", "prompt_encoder", "decoder") if "all" in learn else learn
    before, after = Standin().network.state_dict(), load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != (name.split(".")[0] in parts), name
    learned = sum(t.numel() for name, t in before.items() if name.split(".")[0] in parts)
    total = sum(t.numel() for t in before.values())
    assert run.remarks()[0].endswith(f"of 0 learn: {learned:,} of {total:,} parameters")
    assert run.results()["learned_parameters"] == learned


def test_a_resting_encoder_sees_every_view_once(disks, tmp_path, standin):
    run = Finetuning(settings(disks, tmp_path, steps=30))
    run.remarks()
    list(run.steps())
    assert standin[0].embedded <= 18 * 2 + 2
    assert len(list((tmp_path / "features").glob("*"))) == standin[0].embedded
    megabytes = 38 * (8 * CELLS * CELLS + 1) * 4 / 1e6
    assert f"its features take {megabytes:.0f} MB in {tmp_path / 'features'}" in run.remarks()[2]


def test_numbers_are_the_same_without_a_cache(disks, tmp_path, standin):
    for name, megabytes in (("kept", 100), ("made", 0)):
        run = Finetuning(settings(disks, tmp_path / name, cache_mb=megabytes))
        list(run.steps())
    assert "of which 0 MB are kept (--cache-mb); the rest is encoded each time" in run.remarks()[2]
    assert not list((tmp_path / "made").glob("features/*"))
    kept, made = (state_of(tmp_path / name)["learned"] for name in ("kept", "made"))
    assert all(torch.equal(*pair) for pair in zip(kept, made, strict=True))


def test_the_best_weights_are_kept(disks, tmp_path, standin, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.4])
    monkeypatch.setattr("anymask.training.scoring.Scorer.score", lambda *_: {"box_miou": next(scores)})
    run, at_best = Finetuning(settings(disks, tmp_path)), []
    for record in run.steps():
        if record.step == 5:
            at_best = [tensor.clone() for tensor in run.average.model]
    assert (run.standing.best_step, run.standing.best) == (5, {"box_miou": 0.7})
    saved = load_file(tmp_path / "model" / "model.safetensors")
    names = [name for name, _ in run.model.network.decoder.named_parameters()]
    for name, tensor in zip(names, at_best, strict=True):
        assert torch.equal(saved[f"decoder.{name}"], tensor)
        assert torch.equal(run.model.network.decoder.get_parameter(name), tensor)


def test_without_validation_images_the_last_weights_are_kept(disks, tmp_path, standin):
    run = Finetuning(settings(disks, tmp_path, val_share=0.0))
    list(run.steps())
    assert (run.standing.best_step, run.standing.best) == (12, {})


# --- resuming


@pytest.mark.parametrize("learn", [("decoder",), ("all",)])
def test_a_run_stopped_and_resumed_gives_the_same_numbers(disks, tmp_path, standin, learn):
    whole = [record.metrics for record in train_promptable(settings(disks, tmp_path / "whole", learn=learn))]
    part = settings(disks, tmp_path / "cut", learn=learn)
    for record in train_promptable(part):
        if record.step == 7:  # the checkpoint is of step 5
            break
    rest = list(train_promptable(part))
    assert [record.step for record in rest] == list(range(6, 13))
    assert [record.metrics for record in rest] == whole[6:]
    one, other = (state_of(tmp_path / name) for name in ("whole", "cut"))
    for key in ("learned", "average", "best"):
        assert all(torch.equal(*pair) for pair in zip(one[key], other[key], strict=True)), key
    del one["standing"]["seconds"], other["standing"]["seconds"]
    assert one["standing"] == other["standing"]
    rows = [(tmp_path / name / "curve.csv").read_text().splitlines() for name in ("whole", "cut")]
    steps = [[row.split(",")[0] for row in some] for some in rows]
    assert steps[0] == steps[1] == ["step", "5", "10", "12"]


def test_a_finished_run_does_nothing_more_and_a_longer_one_goes_on(disks, tmp_path, standin):
    list(train_promptable(settings(disks, tmp_path)))
    assert list(train_promptable(settings(disks, tmp_path))) == []
    assert [r.step for r in train_promptable(settings(disks, tmp_path, steps=14, device="cpu"))] == [13, 14]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learn": ("all",)}, "learn"),
        ({"model": "1"}, "model"),
        ({"seed": 1}, "training data, validation data, seed"),
        ({"learning_rate": 1.0, "batch": 2}, "batch, learning_rate"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(disks, tmp_path, standin, changes, named):
    list(train_promptable(settings(disks, tmp_path, steps=1)))
    said = f"checkpoint.pt is of another run: {named} changed; give what it began with, or another -o"
    with pytest.raises(ValueError, match=said):
        Finetuning(settings(disks, tmp_path, **{"steps": 1, **changes}))


def test_changed_masks_are_another_run(tmp_path, standin):
    folders = write_disks(tmp_path / "data", 4)
    list(train_promptable(settings(folders, tmp_path, steps=1, val_share=0)))
    PillowImage.fromarray(np.eye(48, 64, dtype=np.uint8)).save(folders[1] / "00.png")
    with pytest.raises(ValueError, match="is of another run: training data changed"):
        Finetuning(settings(folders, tmp_path, steps=1, val_share=0))


# --- data


def test_where_validation_images_come_from(disks, tmp_path, standin):
    (tmp_path / "val.txt").write_text("03\n04\n05\n")
    (tmp_path / "train.txt").write_text("00\n01\n")

    def stems(**changes):
        pairs = recipe.read_data(settings(disks, tmp_path, **changes))
        return tuple([pair.image.stem for pair in part.rows] for part in pairs)

    learned, held = stems(val_share=0.25, seed=3)
    assert (len(learned), len(held)) == (15, 5) and not set(learned) & set(held)
    assert stems(val_list=tmp_path / "val.txt")[1] == ["03", "04", "05"]
    assert len(stems(val_list=tmp_path / "val.txt")[0]) == 17
    lists = {"val_list": tmp_path / "val.txt", "train_list": tmp_path / "train.txt"}
    assert stems(**lists) == (["00", "01"], ["03", "04", "05"])
    other = write_disks(tmp_path / "other", 2)
    assert [len(part) for part in stems(val_images=other[0], val_masks=other[1])] == [20, 2]
    file = write_set(tmp_path)
    assert [len(p) for p in stems(masks=None, annotations=file, images=tmp_path, val_share=0.25)] == [3, 1]


def test_every_image_comes_once_an_epoch_with_targets_in_its_view(disks, tmp_path):
    pairs = recipe.read_data(settings(disks, tmp_path, val_share=0))[0].rows
    examples = Examples(pairs, Standin(), batch=4, objects=2, views=8, seed=0)
    drawn = [example for step in range(5) for example in examples.of_step(step)]
    assert len({example.pair.image for example in drawn}) == 20
    for example in drawn:
        image = example.view.of(read_image(example.pair.image))
        frame = Standin().frame(image.size, example.view.crop_box)
        x0, y0, x1, y1 = frame.crop_box
        bright = image.pixels[y0:y1, x0:x1].mean(axis=2) > 100  # the disk, as the model sees it
        assert abs(example.targets.masks[0].mean() - bright.mean()) < 0.05
        corners = frame.to_original(example.targets.boxes[0].reshape(2, 2)) - [x0, y0]
        xs, ys = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
        np.testing.assert_allclose(corners, [[xs[0], ys[0]], [xs[-1] + 1, ys[-1] + 1]], atol=1e-3)
    again = [example for step in range(5) for example in examples.of_step(step)]
    assert [(a.pair.image, a.view) for a in drawn] == [(a.pair.image, a.view) for a in again]


def test_masks_smaller_than_a_cell_are_left_out_and_counted(tmp_path, standin):
    images, masks = write_disks(tmp_path, 3)
    labels = np.zeros((48, 64), np.uint8)
    labels[5:25, 5:25], labels[40, 40] = 1, 2
    PillowImage.fromarray(labels).save(masks / "00.png")
    PillowImage.fromarray((labels == 2).astype(np.uint8)).save(masks / "01.png")
    pairs = recipe.read_data(settings((images, masks), tmp_path, val_share=0))[0]
    kept, dropped = large_enough(pairs, Standin())
    assert ([pair.image.stem for pair in kept.rows], [len(pair.masks) for pair in kept.rows], dropped) == (
        ["00", "02"],
        [1, 1],
        2,
    )
    run = Finetuning(settings((images, masks), tmp_path, val_share=0))
    assert "2 masks are smaller than a cell of the model's answer: left out" in run.remarks()
    for stem in ("00", "02"):
        PillowImage.fromarray((labels == 2).astype(np.uint8)).save(masks / f"{stem}.png")
    with pytest.raises(ValueError, match="all 3 masks are smaller than a cell of the model's answer: crop the images"):
        Finetuning(settings((images, masks), tmp_path / "none", val_share=0))


def test_a_run_that_diverges_says_so_and_saves_nothing(disks, tmp_path, standin):
    with pytest.raises(ValueError, match=r"the gradients of step \d+ are not finite: give a smaller --learning-rate"):
        run = Finetuning(settings(disks, tmp_path / "run", val_share=0))
        for p in run.learned:
            p.data.fill_(float("inf"))
        list(run.steps())
    assert not (tmp_path / "run" / "model").exists()


def test_validation_masks_need_no_images_of_their_own(disks, tmp_path, standin):
    learned, held = recipe.read_data(settings(disks, tmp_path, val_masks=disks[1]))
    assert [pair.image for pair in held.rows] == [pair.image for pair in learned.rows]
    remarks = Finetuning(settings(disks, tmp_path, val_masks=disks[1])).remarks()
    assert f"{len(held)} of the images to validate on are learned from too: their scores say little" in remarks
    with pytest.raises(FileNotFoundError, match="no such folder"):
        recipe.read_data(settings(disks, tmp_path, val_masks=tmp_path / "nowhere"))


def test_something_must_be_left_to_learn_from(disks, tmp_path, standin):
    (tmp_path / "all.txt").write_text("\n".join(path.stem for path in disks[0].iterdir()))
    with pytest.raises(ValueError, match="no image is left to learn from: all are held out"):
        Finetuning(settings(disks, tmp_path / "run", val_list=tmp_path / "all.txt"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", float("nan"), "learning_rate must be at least 0 and at most 1, got nan"),
        ("average", 2.0, "average must be at least 0 and at most 1, got 2"),
        ("cache_mb", -1, "cache_mb must be at least 0, got -1"),
        ("val_share", 1.5, "val_share must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(disks, tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        settings(disks, tmp_path, **{name: value})


@pytest.mark.parametrize("content", [b"junk, not a checkpoint", [1, 2], {"model": torch.zeros(1)}])
def test_a_checkpoint_that_is_none_is_named(disks, tmp_path, standin, content):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is no "):
        Finetuning(settings(disks, tmp_path / "run"))


def test_a_finished_run_that_is_called_again_keeps_its_report(disks, tmp_path, standin):
    list(Finetuning(settings(disks, tmp_path / "run", steps=2)).steps())
    before = (tmp_path / "run" / "report.json").read_bytes()
    assert list(Finetuning(settings(disks, tmp_path / "run", steps=1)).steps()) == []
    assert (tmp_path / "run" / "report.json").read_bytes() == before


# --- prompts and loss


def targets(*boxes):
    masks = np.zeros((len(boxes), SIDE, SIDE), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return interaction.targets_in(Frame.stretched((SIDE, SIDE), (SIDE, SIDE)), masks, (CELLS, CELLS))


def test_targets_of_a_padded_frame_leave_the_padding_empty():
    masks = np.ones((1, 20, 40), bool)
    found = interaction.targets_in(Frame.padded((20, 40), (SIDE, SIDE)), masks, (CELLS, CELLS))
    assert found.masks[0, :8].eq(1).all() and found.masks[0, 8:].eq(0).all()
    np.testing.assert_allclose(found.boxes, [[0, 0, 32, 16]])


def test_first_prompts_mean_their_objects():
    some, rng = targets((4, 4, 12, 20), (20, 2, 30, 30)), np.random.default_rng(0)
    kept = []
    for _ in range(50):
        clicked = interaction.click_prompts(some, (SIDE, SIDE), rng)
        assert clicked.boxes is None and (clicked.point_labels == 1).all()
        for (x, y), mask in zip(clicked.point_coords[:, 0].tolist(), some.masks, strict=True):
            assert mask[int(y / 2), int(x / 2)] == 1
        boxed = interaction.box_prompts(some, (SIDE, SIDE), rng)
        assert boxed.point_coords.shape == (2, 0, 2)
        kept.append(boxed.boxes.numpy())
    moved = np.stack(kept) - some.boxes
    assert np.abs(moved.mean(axis=0)).max() < 1 and 0.1 < moved.std() < 2
    assert np.stack(kept).min() >= 0 and np.stack(kept).max() <= SIDE


def test_a_correction_clicks_the_largest_error_and_drops_what_is_right():
    some = targets((8, 8, 24, 24), (0, 0, 8, 8))
    right = torch.where(some.masks > 0.5, 5.0, -5.0)
    wrong = right.clone()
    wrong[0, :, 8:] = -5.0  # the right half was missed
    asked = replace(interaction.box_prompts(some, (SIDE, SIDE), np.random.default_rng(0)))
    prompts, rows = interaction.corrected(asked, wrong, some.masks, (SIDE, SIDE))
    assert rows.tolist() == [0] and len(prompts) == 1
    assert prompts.point_labels.tolist() == [[1]]
    x, y = prompts.point_coords[0, 0].tolist()
    assert 16 < x < 24 and 8 < y < 24
    assert torch.equal(prompts.masks, wrong[:1]) and torch.equal(prompts.boxes, asked.boxes[:1])
    assert len(interaction.corrected(asked, right, some.masks, (SIDE, SIDE))[0]) == 0


def test_of_several_candidates_only_the_best_learns_its_mask():
    some = targets((8, 8, 24, 24))
    good, bad = (torch.where(some.masks > 0.5, value, -value) for value in (3.0, -3.0))
    logits = torch.stack([bad, good], dim=1).requires_grad_()
    iou = torch.tensor([[0.9, 0.2]], requires_grad=True)
    loss, chosen = interaction.answer_loss(logits, iou, some.masks)
    loss.sum().backward()
    assert logits.grad[0, 0].abs().sum() == 0 and logits.grad[0, 1].abs().sum() > 0
    assert (iou.grad[0] > 0).tolist() == [True, False]
    assert chosen.tolist() == [0.0]


# --- memory


def test_fewer_images_at_once_where_memory_ends(disks, tmp_path, standin, caplog):
    run = Finetuning(settings(disks, tmp_path, steps=3))
    standin[0].most_images = 1
    assert [record.step for record in run.steps()] == [0, 1, 2, 3]
    assert run.at_once == 1
    assert [r.message for r in caplog.records] == [
        f"out of memory on the device: going on with {n} images at a time" for n in (2, 1)
    ]
    plain = Finetuning(settings(disks, tmp_path / "plain", steps=1))
    parts = Finetuning(settings(disks, tmp_path / "parts", steps=1))
    parts.at_once = 1
    for one in (plain, parts):
        one._learn(one.examples.of_step(0), np.random.default_rng(0))
    norms = [sum(p.grad.norm() for p in one.learned) for one in (plain, parts)]
    assert 0.3 < norms[0] / norms[1] < 3  # other prompts, but the same mean over objects


def test_too_little_memory_for_one_image_is_said(disks, tmp_path, standin):
    run = Finetuning(settings(disks, tmp_path, val_share=0))
    standin[0].most_images = 0
    with pytest.raises(
        MemoryError, match="cpu has too little memory to train standin on one image at a time: give fewer"
    ):
        list(run.steps())


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn": ("head",)}, "learn must be decoder, prompt_encoder, encoder or all, got head"),
        ({"learn": ()}, "learn must be decoder, prompt_encoder, encoder or all, got nothing"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"masks": None}, "give the masks of the images in .*images once: as a folder of masks or as a COCO file"),
        ({"val_share": 1.0}, "the share of validation images must be at least 0 and below 1, got 1.0"),
    ],
)
def test_nonsense_is_refused(disks, tmp_path, standin, changes, message):
    with pytest.raises(ValueError, match=message):
        Finetuning(settings(disks, tmp_path, **changes))


def test_a_model_that_cannot_be_trained_is_named(disks, tmp_path, monkeypatch):
    class Detector(Standin):
        @property
        def parts(self):
            return {"encoder": None}

    for model, name in ((Oracle(name="oracle"), "oracle"), (Detector(), "standin")):
        monkeypatch.setattr(recipe, "load", lambda *_, model=model, **__: model)
        said = f"{name} cannot be trained by prompts: give a model of sam, mobile, sam2 or pocket"
        with pytest.raises(ValueError, match=said):
            Finetuning(settings(disks, tmp_path))


# --- pocket and the command


def test_pocket_responds_as_it_decodes(tiny_pocket, disks):
    model = load(tiny_pocket, "cpu")
    image = read_image(disks[0] / "00.png")
    [features] = model.encode([image])
    prompt = Prompt.points([(30, 20), (10, 10)], [1, 0]) + Prompt.mask(np.eye(16, dtype=np.float32))
    points = features.frame.to_model(prompt.point_coords)
    tensors = PromptTensors(
        torch.from_numpy(points)[None], torch.from_numpy(prompt.point_labels)[None], None, torch.eye(16)[None]
    )
    for multimask in (True, False):
        [expected] = model.decode([features], [[prompt]], multimask)
        logits, iou = model.respond(features.tensors, torch.zeros(1, dtype=torch.long), tensors, multimask)
        torch.testing.assert_close(logits, expected.logits)
        torch.testing.assert_close(iou, expected.predicted_iou)
    boxed = PromptTensors(torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long), torch.tensor([[4.0, 4, 40, 40]]))
    assert model.respond(features.tensors, torch.zeros(1, dtype=torch.long), boxed, True)[0].shape == (1, 3, 16, 16)


def test_a_saved_pocket_gives_the_same_masks_and_text(tiny_pocket, disks, tmp_path):
    model = load(tiny_pocket, "cpu")
    model.save(tmp_path / "model")
    saved, image = load(tmp_path / "model", "cpu"), read_image(disks[0] / "00.png")
    ours, theirs = model.encode([image])[0], saved.encode([image])[0]
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], tensor, atol=2e-3, rtol=2e-2)
    torch.testing.assert_close(
        saved.encode_text([Prompt.text("cat")]).tensors["tokens"],
        model.encode_text([Prompt.text("cat")]).tensors["tokens"],
    )


def test_the_parts_of_pocket_are_apart_and_all_but_text(tiny_pocket):
    model = load(tiny_pocket, "cpu")
    of = {part: {id(p) for p in module.parameters()} for part, module in model.parts.items()}
    assert not of["encoder"] & of["decoder"] | of["decoder"] & of["prompt_encoder"]
    left = {id(p) for p in model.network.parameters()} - set().union(*of.values())
    names = {name for name, p in model.network.named_parameters() if id(p) in left}
    assert {name.split(".")[0] for name in names if "text" not in name} == set()


@pytest.fixture
def command(pocket, disks, tmp_path):
    small = ["--steps", "3", "--batch", "2", "--validate-every", "2"]
    words = ["--images", str(disks[0]), "--masks", str(disks[1]), "--model", "pocket", "--learn", "decoder"]
    return ["train", "promptable", *words, "-o", str(tmp_path / "run"), "--resume", *small]


def run(capsys, *words):
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_makes_a_model_that_segments(command, disks, tmp_path, capsys):
    code, out, err = run(capsys, *command, "--json")
    found = json.loads(out)
    assert (code, found["weights"], found["step"]) == (0, str(tmp_path / "run" / "model"), 3)
    assert found["box_miou"] >= 0 and found["failed"] == {}
    first, second, third = err.splitlines()
    assert (
        first == f"decoder of pocket learn: {found['learned_parameters']:,} of {found['all_parameters']:,} parameters"
    )
    assert second == "18 images with 18 masks to learn from, 2 with 2 to validate on"
    assert third.startswith("the encoder rests: its features take ")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["learn"] == ["decoder"]
    words = ["segment", str(disks[0] / "00.png"), "--point", "5,5", "-m", found["weights"], "--json"]
    assert run(capsys, *words)[0] == 0
    code, out, _ = run(capsys, *command, "--steps", "4")
    assert code == 0
    assert "model is trained; loss" in out.splitlines()[0] and "box_miou" in out.splitlines()[1]
    assert "was trained already" in run(capsys, *command, "--steps", "4")[1]


def test_a_failed_file_is_named_and_shown_in_the_exit_code(command, disks, tmp_path, capsys):
    images, masks = write_disks(tmp_path / "data", 5)
    (images / "03.png").write_bytes(b"broken")
    words = [str(images) if w == str(disks[0]) else str(masks) if w == str(disks[1]) else w for w in command]
    code, out, err = run(capsys, *words, "--json")
    assert code == 1
    assert list(json.loads(out)["failed"]) == ["03.png"]
    assert "failed: " in err and "03.png must be an image" in err


def test_an_interruption_keeps_the_checkpoint(command, tmp_path, monkeypatch, capsys):
    original = Finetuning._step

    def interrupted(self):
        if self.standing.step == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Finetuning, "_step", interrupted)
    code, _, err = run(capsys, *command)
    kept = f"{tmp_path / 'run' / 'checkpoint.pt'} is kept; run the same command with --resume to go on"
    assert (code, err.splitlines()[-1]) == (130, f"anymask train promptable: interrupted at step 2: {kept}")
    monkeypatch.undo()
    assert state_of(tmp_path / "run")["standing"]["step"] == 2


def test_the_command_says_in_one_line_what_is_wrong(command, tmp_path, capsys):
    assert run(capsys, *command)[0] == 0
    code, _, err = run(capsys, *[word for word in command if word != "--resume"])
    assert code == 2 and "is of an earlier run: add --resume to go on with it" in err
    code, _, err = run(capsys, *command, "--learn", "head")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("anymask train promptable: learn must be decoder, prompt_encoder, encoder or all, got head")
