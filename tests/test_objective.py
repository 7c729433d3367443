"""What a phrase is judged by: formulas against slow ones, and which query answers for which object."""

import math

import pytest
import torch
from torch.nn import functional
from torchvision.ops import generalized_box_iou

from anymask.adapting.objective import Wanted, iou_matrix, judge_image, mask_costs, match
from anymask.adapting.settings import MATCHES, Objective
from anymask.models.word_space import Answers
from anymask.ops.losses import dice_loss, soft_boxes


def blocks(*boxes, side=16):
    """Masks of x0 y0 x1 y1 cells, and their boxes in shares."""
    masks = torch.zeros(len(boxes), side, side)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return Wanted(masks, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / side)


def answers_of(masks, scores=None, presence=3.0, sharp=8.0):
    logits = (masks * 2 - 1) * sharp
    given = torch.zeros(len(masks)) if scores is None else torch.tensor(scores)
    boxes = soft_boxes(logits)
    return Answers(logits[None], given[None], torch.tensor([presence]), boxes[None])


A, B = (1, 1, 6, 5), (8, 7, 15, 14)


def test_costs_and_overlaps_equal_the_slow_ones():
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(5, 8, 8, generator=generator) * 4, torch.rand(3, 8, 8, generator=generator)
    for q in range(5):
        for k in range(3):
            bce = functional.binary_cross_entropy_with_logits(logits[q], masks[k])
            assert mask_costs(logits, masks)[q, k] == pytest.approx(
                float(bce + dice_loss(logits[q], masks[k])), abs=1e-5
            )
            found, truth = logits[q] > 0, masks[k] > 0.5
            assert iou_matrix(logits, masks)[q, k] == pytest.approx(
                float((found & truth).sum() / (found | truth).sum())
            )


def test_soft_boxes_of_sharp_masks_are_their_boxes():
    wanted = blocks(A, B, (0, 0, 16, 16), (3, 4, 4, 5))
    torch.testing.assert_close(soft_boxes((wanted.masks * 2 - 1) * 8), wanted.boxes, atol=1e-3, rtol=0)
    empty = soft_boxes(torch.full((1, 16, 16), -9.0))
    assert (empty[0, 2:] >= empty[0, :2]).all()


def test_soft_boxes_can_be_learned():
    logits = torch.full((1, 16, 16), -1.0)
    logits[0, 2:9, 2:9] = 1
    logits.requires_grad_(True)
    target = blocks((2, 2, 12, 12)).boxes
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        loss = (soft_boxes(logits) - target).abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize("kind", MATCHES)
def test_matches_share_one_among_the_objects(kind):
    wanted, found = blocks(A, B), blocks(B, A, (0, 0, 3, 3), A)
    answers = answers_of(found.masks)
    weights = match(answers.logits[0], answers.scores[0], answers.boxes[0], wanted, Objective(match=kind, top=2))
    assert weights.shape == (4, 2) and weights.sum() == pytest.approx(1)
    assert weights[0, 1] > 0.2 and (weights[1, 0] + weights[3, 0]) > 0.2
    if kind == "top":
        assert ((weights > 0).sum(0) == 2).all()
    if kind == "all":
        assert ((weights > 0).sum(0) == 1).all() and ((weights > 0).sum(1) <= 1).all()


def test_by_the_hungarian_method_no_two_objects_share_a_query():
    wanted, found = blocks(A, (1, 1, 6, 6)), blocks(A, (0, 9, 9, 16))
    logits, scores, boxes = (
        one[0] for one in (answers_of(found.masks).logits, torch.zeros(1, 2), soft_boxes(found.masks * 8 - 4)[None])
    )
    assert match(logits, scores, boxes, wanted, Objective(match="best"))[0].tolist() == [0.5, 0.5]
    assert (match(logits, scores, boxes, wanted, Objective(match="all")).sum(1) == 0.5).all()


def test_a_perfect_answer_costs_nearly_nothing_and_a_wrong_one_much():
    right = judge_image(answers_of(blocks(A, B).masks, [9.0, -9.0], 9.0), 0, blocks(A), False, Objective())
    wrong = judge_image(answers_of(blocks(B).masks, [-9.0], -9.0), 0, blocks(A), False, Objective())
    assert right.loss < 0.1 and right.query == 0 and right.parts["iou"] == 1 and right.parts["score"] > 0.99
    assert wrong.loss > 10 and wrong.parts["iou"] == 0


def test_the_loss_is_what_its_parts_say():
    answers, wanted, weights = (
        answers_of(blocks(B, (1, 1, 6, 7)).masks, [0.3, -0.2]),
        blocks(A),
        Objective(2.0, 3.0, 4.0),
    )
    found = judge_image(answers, 0, wanted, False, weights)
    p = found.parts
    assert float(found.loss) == pytest.approx(2 * p["mask_loss"] + 3 * p["score_loss"] + 4 * p["box_loss"], rel=1e-5)
    box, truth = answers.boxes[0, 1:], wanted.boxes
    assert p["box_loss"] == pytest.approx(
        float((box - truth).abs().sum() + 1 - generalized_box_iou(box, truth)), abs=1e-4
    )
    expected = math.log1p(math.exp(-3)) + math.log1p(math.exp(0.2)) + math.log1p(math.exp(0.3))
    assert p["score_loss"] == pytest.approx(expected, rel=1e-5) and found.query == 1


def test_a_union_is_learned_as_one_object():
    both = blocks(A, B)
    union = both.masks.amax(0, keepdim=True)
    found = judge_image(answers_of(union, presence=9.0), 0, both, True, Objective())
    assert found.parts["iou"] == 1 and found.loss < 0.1
    assert both.united().boxes.tolist() == [[1 / 16, 1 / 16, 15 / 16, 14 / 16]]


def test_where_there_is_nothing_nothing_must_be_found():
    none = Wanted(torch.zeros(0, 16, 16), torch.zeros(0, 4))
    for unions in (True, False):
        sure, unsure = (
            judge_image(answers_of(blocks(A).masks, [x], x), 0, none, unions, Objective()) for x in (5.0, -5.0)
        )
        assert unsure.loss < 0.1 < 5 < sure.loss and sure.query is None
        assert sure.parts["absent_score"] > 0.9 > 0.1 > unsure.parts["absent_score"]


def test_wrong_objectives_are_refused():
    with pytest.raises(ValueError, match="match must be best, top, soft, all, got 'worst'"):
        Objective(match="worst")
    with pytest.raises(ValueError, match="top must be at least 1"):
        Objective(top=0)
    with pytest.raises(ValueError, match="the temperature above 0, got 3, nan"):
        Objective(temperature=float("nan"))


@pytest.mark.parametrize("kind", MATCHES)
def test_what_is_not_finite_is_a_loss_that_is_not(kind):
    answers = answers_of(blocks(A, B).masks * float("nan"))
    assert not torch.isfinite(judge_image(answers, 0, blocks(A), False, Objective(match=kind)).loss)
