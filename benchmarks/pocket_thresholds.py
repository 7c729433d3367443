"""Which masks of a grid of clicks are worth keeping: the default thresholds of pocket for "everything" come from here.

    python benchmarks/pocket_thresholds.py --images val --annotations val.json --limit 60

A grid of clicks on each image, three candidates each; those with at least the given predicted IoU and stability (area
at logit +1 over area at -1) pass, then box NMS at 0.7. Recall: labelled objects that a kept mask covers with IoU 0.5;
precision: kept masks that cover a labelled object so, a lower bound, since not everything is labelled; and their
harmonic mean. All at the resolution of the logits, sources of the training set.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.ops import batched_nms, masks_to_boxes

import anymask
from anymask.data.coco import read_coco
from anymask.ops.sampling import stratified
from anymask.types import Masks, Prompt

PREDICTED = (0.4, 0.5, 0.6, 0.7)
STABLE = (0.0, 0.5, 0.6, 0.7, 0.8)


def main() -> None:
    """Measures every pair of thresholds on every image, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--points-per-side", type=int, default=16)
    args = parser.parse_args()
    model = anymask.load("pocket", device="cpu")
    dataset = read_coco(args.annotations, args.images)
    trained = [entry for entry in dataset.images if dataset.in_train(entry)]
    found: dict[tuple[float, float], list[tuple[float, float, float]]] = defaultdict(list)
    for row in stratified([entry.source for entry in trained], args.limit, 0):
        image, truth = anymask.read_image(dataset.path(trained[row])), dataset.masks(trained[row])
        if not len(truth):
            continue
        h, w = image.size
        steps = (np.arange(args.points_per_side) + 0.5) / args.points_per_side
        prompts = [Prompt.point(x * w, y * h) for y in steps for x in steps]
        decoded = model.decode(model.encode([image]), [prompts], multimask_output=True)[0]
        logits, predicted = decoded.logits.flatten(0, 1), decoded.predicted_iou.flatten()
        overlap = ious(logits > 0, small(truth, logits.shape[-1]))
        stable = stability(logits)
        for least in PREDICTED:
            for steady in STABLE:
                kept = keep(logits, predicted, (predicted >= least) & (stable >= steady))
                found[least, steady].append(measure(overlap[kept]))
    print("predicted IoU  stability  masks  recall  precision  harmonic mean")
    for (least, steady), rows in found.items():
        count, recall, precision = np.nanmean(np.asarray(rows), axis=0)
        mean = 2 * recall * precision / max(recall + precision, 1e-9)
        print(f"{least:13.2f} {steady:10.2f} {count:6.1f} {recall:7.3f} {precision:10.3f} {mean:14.3f}")


def small(truth: Masks, side: int) -> torch.Tensor:
    """The labelled masks at the resolution of the logits."""
    shrunk = [cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in truth.masks]
    return torch.from_numpy(np.stack(shrunk) > 0.5)


def stability(logits: torch.Tensor) -> torch.Tensor:
    """SAM's stability score with an offset of 1."""
    return (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2)).clamp(min=1)


def ious(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU of every mask with every labelled one."""
    first, second = masks.flatten(1).float(), truth.flatten(1).float()
    shared = first @ second.T
    return shared / (first.sum(1)[:, None] + second.sum(1)[None] - shared).clamp(min=1)


def keep(logits: torch.Tensor, predicted: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """Rows of the non-empty masks that pass and survive box NMS, by predicted IoU."""
    rows = (passed & (logits > 0).any(dim=2).any(dim=1)).nonzero()[:, 0]
    if not len(rows):
        return rows
    boxes = masks_to_boxes(logits[rows] > 0) + torch.tensor([0, 0, 1, 1])
    return rows[batched_nms(boxes, predicted[rows], torch.zeros_like(rows), 0.7)]


def measure(overlap: torch.Tensor) -> tuple[float, float, float]:
    """Kept masks, recall, precision (NaN for none)."""
    if not len(overlap):
        return 0.0, 0.0, float("nan")
    hit = overlap >= 0.5
    return float(len(overlap)), hit.any(0).float().mean().item(), hit.any(1).float().mean().item()


if __name__ == "__main__":
    main()
