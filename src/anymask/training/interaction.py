"""Simulated prompts for any model of SAM's form, as SAM trains (Kirillov et al. 2023, section A): a box or a click,
then clicks in what is still wrong, each with the mask so far.

Targets are soft: the share of each cell of the model's mask that the object covers. Prompts are in model pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymask.models.decode import PromptTensors
from anymask.models.promptable import PromptableModel, mask_logits
from anymask.ops import clicks
from anymask.ops.boxes import jittered
from anymask.ops.losses import area_bce_loss, dice_loss, soft_iou
from anymask.types import Frame, Size

BOX_SHARE = 0.5  # of first prompts; the others are clicks
JITTERS, JITTER_SHARES = (0.02, 0.1), (0.7, 0.3)  # of careful and of hasty boxes
MOST_CORRECTIONS = 2
IOU_WEIGHT = 2.0


@dataclass(frozen=True)
class Targets:
    """Objects as the model sees them: soft masks, tight boxes, and the image that each is of."""

    masks: Float[Tensor, "n lh lw"]
    boxes: Float[np.ndarray, "n 4"]
    image_rows: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: Int[np.ndarray, "k"]) -> "Targets":
        chosen = torch.from_numpy(rows)
        return Targets(self.masks[chosen], self.boxes[rows], self.image_rows[chosen])


def targets_in(frame: Frame, masks: Bool[np.ndarray, "n h w"], size: Size) -> Targets:
    """Those of `masks` (original pixels) of which at least half a cell is in the frame; all of image 0."""
    x0, y0, x1, y1 = frame.crop_box
    soft = [mask_logits(mask, frame, size, 0.5) + 0.5 for mask in masks]  # covered cells are 1, empty ones 0
    rows = [i for i, cells in enumerate(soft) if cells.sum() >= 0.5]
    corners = [_tight_corners(masks[i, y0:y1, x0:x1]) + np.asarray([x0, y0], np.float32) for i in rows]
    return Targets(
        torch.from_numpy(np.stack([soft[i] for i in rows]) if rows else np.zeros((0, *size), np.float32)),
        np.asarray([frame.to_model(one) for one in corners], np.float32).reshape(-1, 4),
        torch.zeros(len(rows), dtype=torch.long),
    )


def joined(parts: Sequence[Targets]) -> Targets:
    """The objects of several images, which are numbered in this order."""
    counts = torch.tensor([len(part) for part in parts])
    return Targets(
        torch.cat([part.masks for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        torch.arange(len(parts)).repeat_interleave(counts),
    )


def interact(
    model: PromptableModel, features: Mapping[str, Tensor], targets: Targets, total: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Asks for each object by a box or a click, corrects the answers up to twice, and runs every answer's loss back.

    `total` is the number of objects of the whole step, of which these may be a part. Returns the loss and the IoU of
    every answer, by kind.
    """
    boxed = rng.random(len(targets)) < BOX_SHARE
    found: dict[str, list[float]] = {}
    for kind, ask, rows in (("box", box_prompts, boxed), ("click", click_prompts, ~boxed)):
        some = targets[np.flatnonzero(rows)]
        prompts = ask(some, model.input_size, rng)
        last = int(rng.integers(MOST_CORRECTIONS + 1))
        for turn in range(1 + last):
            if not len(some):
                break
            lone_click = kind == "click" and turn == 0
            logits, predicted_iou = _answer(model, features, some, prompts, multimask_output=lone_click)
            loss, iou = answer_loss(logits, predicted_iou, some.masks.to(model.device))
            (loss.sum() / total).backward()
            found.setdefault("loss", []).extend(loss.tolist())
            found.setdefault(f"{kind}_iou" if turn == 0 else "corrected_iou", []).extend(iou.tolist())
            if turn == last:
                break
            prompts, wrong = corrected(prompts, _surest(logits, predicted_iou), some.masks, model.input_size)
            some = some[wrong]
    return found


def box_prompts(targets: Targets, input_size: Size, rng: np.random.Generator) -> PromptTensors:
    """A box around each, a little off."""
    amount = float(rng.choice(JITTERS, p=JITTER_SHARES))
    boxes = torch.from_numpy(jittered(targets.boxes, amount, input_size, rng))
    n = len(targets)
    return PromptTensors(torch.zeros(n, 0, 2), torch.zeros(n, 0, dtype=torch.long), boxes)


def click_prompts(targets: Targets, input_size: Size, rng: np.random.Generator) -> PromptTensors:
    """A click on each: half of the time at its deepest point, else anywhere on it."""
    stride = input_size[1] / targets.masks.shape[-1]
    points = [clicks.drawn_click(cells.numpy(), rng) for cells in targets.masks]
    coords = torch.tensor(points, dtype=torch.float32).reshape(-1, 1, 2) * stride
    return PromptTensors(coords, torch.ones(len(targets), 1, dtype=torch.long))


def corrected(
    prompts: PromptTensors, logits: Float[Tensor, "n lh lw"], wanted: Float[Tensor, "n lh lw"], input_size: Size
) -> tuple[PromptTensors, Int[np.ndarray, "k"]]:
    """The prompts with the mask so far and a click in its largest error, of the rows that have one; and these rows."""
    stride = input_size[1] / logits.shape[-1]
    pairs = zip((logits > 0).numpy(), (wanted > 0.5).numpy(), strict=True)
    found = [clicks.next_click(mask, target) for mask, target in pairs]
    rows = np.asarray([i for i, click in enumerate(found) if click is not None], np.int64)
    added = torch.tensor([click for click in found if click is not None]).reshape(-1, 1, 3)
    kept = torch.from_numpy(rows)
    return PromptTensors(
        torch.cat([prompts.point_coords[kept], added[..., :2] * stride], dim=1),
        torch.cat([prompts.point_labels[kept], added[..., 2].long()], dim=1),
        None if prompts.boxes is None else prompts.boxes[kept],
        logits[kept],
    ), rows


def answer_loss(
    logits: Float[Tensor, "n c lh lw"], predicted_iou: Float[Tensor, "n c"], targets: Float[Tensor, "n lh lw"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Of each prompt the loss, and the IoU of the mask that the model holds to be its best.

    Of several candidates only the one that fits best learns its mask (SAM, section A); all learn their IoU.
    """
    wanted = targets[:, None].expand_as(logits)
    masks = area_bce_loss(logits, wanted) + dice_loss(logits, wanted)
    real = soft_iou(logits.detach(), wanted)
    loss = masks.min(dim=1).values + IOU_WEIGHT * (predicted_iou - real).square().mean(dim=1)
    chosen = predicted_iou.detach().argmax(dim=1, keepdim=True)
    return loss, real.gather(1, chosen)[:, 0]


def _answer(
    model: PromptableModel,
    features: Mapping[str, Tensor],
    targets: Targets,
    prompts: PromptTensors,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """`respond` in mixed precision where the GPU has bfloat16; what comes back is float32."""
    boxes, masks = (None if x is None else x.to(model.device) for x in (prompts.boxes, prompts.masks))
    coords, labels = prompts.point_coords.to(model.device), prompts.point_labels.to(model.device)
    there = replace(prompts, point_coords=coords, point_labels=labels, boxes=boxes, masks=masks)
    with mixed_precision(model.device):
        logits, iou = model.respond(features, targets.image_rows.to(model.device), there, multimask_output)
    return logits.float(), iou.float()


def mixed_precision(device: str) -> torch.autocast:
    """bfloat16 on a GPU that has it; elsewhere nothing changes."""
    kind = device.partition(":")[0]
    able = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(kind, torch.bfloat16, enabled=able)


def _surest(logits: Float[Tensor, "n c lh lw"], predicted_iou: Float[Tensor, "n c"]) -> Float[Tensor, "n lh lw"]:
    """Of each prompt the mask that a user would get, on the CPU."""
    best = predicted_iou.detach().argmax(dim=1)[:, None, None, None]
    return logits.detach().take_along_dim(best, 1)[:, 0].cpu()


def _tight_corners(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "2 2"]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.asarray([[xs[0], ys[0]], [xs[-1] + 1, ys[-1] + 1]], np.float32)
