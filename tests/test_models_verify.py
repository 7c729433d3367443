"""Our path against transformers' own, on pictures from file to mask, for every family (`anymask models verify`)."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anymask.cli.main import main
from anymask.evaluation.parity import drawn, verify, within_tolerance
from anymask.models.promptable import PromptableModel
from tiny import tiny_model
from tiny_families import tiny_edgetam, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3

FAMILIES = {"sam": tiny_sam, "mobile": tiny_mobile, "sam2": tiny_sam2, "edgetam": tiny_edgetam, "sam3": tiny_sam3}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_paths_give_the_same_masks(family: str) -> None:
    model: PromptableModel = FAMILIES[family]()
    differences = list(verify(model))
    assert len(differences) == 3 * 5
    for one in differences:
        assert one.logits <= 1e-3, one
        assert one.predicted_iou <= 1e-3, one
        assert one.resized_logits <= (1e-3 if family in ("sam", "mobile") else 0.1), one
        assert one.mask_iou > 0.99, one
        assert within_tolerance(one)


def test_a_decoder_that_differs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_sam2()
    respond: Callable[..., tuple[torch.Tensor, torch.Tensor]] = model.respond
    monkeypatch.setattr(model, "respond", lambda *args: (respond(*args)[0] + 0.01, respond(*args)[1]))
    (first, *_) = verify(model, [drawn((40, 50))])
    assert math.isclose(first.logits, 0.01, abs_tol=1e-3)
    assert not within_tolerance(first)


def test_pocket_has_no_other_path() -> None:
    with pytest.raises(ValueError, match="pocket has no path for points in transformers to compare with"):
        list(verify(tiny_model()))


def test_the_command_says_that_both_paths_give_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_mobile().save(tmp_path / "mobile")
    assert main(["models", "verify", str(tmp_path / "mobile")]) == 0
    shown = capsys.readouterr().out
    assert "both paths give the same" in shown
    assert shown.count("box and clicks") == 3


def test_the_command_knows_why_hq_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_sam_hq().save(tmp_path / "hq")
    assert main(["models", "verify", str(tmp_path / "hq"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["same"]
    assert "ours is the authors' code" in document["known"]
    assert max(row["predicted_iou"] for row in document["differences"]) < 1e-3


def test_pocket_cannot_be_verified(pocket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", "pocket"]) == 2
    assert "has no path for points in transformers" in capsys.readouterr().err
