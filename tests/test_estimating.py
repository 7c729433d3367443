"""What a run would take is told at full size, without weights."""

from pathlib import Path

import pytest
import torch

from anymask.adapting.estimating import estimate
from anymask.adapting.inversion import Inversion
from anymask.adapting.lessons import Lessons
from anymask.adapting.settings import InversionSettings
from anymask.data.pairs import Pair, Pairs
from anymask.models.load import load
from anymask.types import Masks
from standin import write_disks
from tiny_families import tiny_sam2
from tiny_sam3 import tiny_sam3, write_tiny_merges


def lessons_of(count: int) -> Lessons:
    return Lessons(Pairs((Pair(Path("a.jpg"), Masks.empty((4, 4))),) * count))


def test_sam3_at_full_size_needs_no_weights():
    found = estimate(
        InversionSettings(model="facebook/sam3", tokens=3, batch_size=2, steps=10, device="cpu"), lessons_of(5)
    )
    assert found.learned_numbers == 3 * 1024
    assert found.weights_mb == pytest.approx(859.9 * 4, rel=0.01)  # the catalogue's millions of parameters, in float32
    assert found.features_mb == pytest.approx(256 * 4e-6 * (72**2 + 144**2 + 288**2), rel=0.001)
    assert 5 < found.encode_teraflop < 7 and 0.3 < found.forward_teraflop / 2 < 0.6
    assert 2 < found.step_teraflop / found.forward_teraflop < 3  # backward through all, for the vectors alone
    assert found.memory_mb > found.weights_mb + found.features_mb + 500
    judged = found.forward_teraflop / 2 * 5  # once, before the first step
    seconds = (10 * found.step_teraflop + 10 * found.encode_teraflop + judged) * 1000 / found.gigaflop_per_second
    assert found.run_seconds == pytest.approx(seconds)  # five images in two views
    assert "at least" in found.lines()[-1] and found.as_json()["model"] == "facebook/sam3"


def test_an_estimate_of_pocket_is_of_what_it_does(tmp_path):
    images, masks = write_disks(tmp_path / "disks", 2)
    given = InversionSettings(
        images=images, masks=masks, output=tmp_path, seed_text="red disk", batch_size=2, steps=1, val_share=0
    )
    run = Inversion(given, model=load("pocket"))
    found = estimate(given, run.lessons)
    kept = sum(tensor.nbytes for tensor in run.learn.features(0).values()) / 1e6
    assert found.features_mb == pytest.approx(kept)
    assert found.learned_numbers == run.vectors.numel()
    parts = run.space.readers.values()
    assert found.weights_mb >= sum(p.nbytes for part in parts for p in part.parameters()) / 1e6
    assert found.memory_mb == pytest.approx(found.weights_mb + 2 * (found.features_mb + found.kept_for_backward_mb))


def test_a_folder_counts_by_its_own_sizes_and_leaves_no_trace(tmp_path):
    model = tiny_sam3(write_tiny_merges(tmp_path))
    model.save(tmp_path / "model")
    found = estimate(InversionSettings(model=str(tmp_path / "model")), lessons_of(1))
    assert found.weights_mb < 5 and found.learned_numbers == 24
    pixels = torch.zeros(1, 3, *model.input_size)
    with torch.no_grad():
        answers = model.words.answer(model.words.prepare(model.embed(pixels)), model.words.vectors("red car"))
    assert type(answers.logits) is torch.Tensor and answers.logits.isfinite().all()


def test_a_model_without_names_has_no_estimate(tmp_path):
    tiny_sam2().save(tmp_path / "model")
    with pytest.raises(ValueError, match="knows no text, so that it cannot be taught a word"):
        estimate(InversionSettings(model=str(tmp_path / "model")), lessons_of(1))
