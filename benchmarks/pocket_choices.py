"""What each choice around pocket's network is worth, on a labelled set: docs/pocket.md quotes the table this prints.

    python benchmarks/pocket_choices.py --images val --annotations val.json

- a box as a limit of the mask, and a lower threshold inside it, for tight and for jittered boxes;
- a lone click answered by the best of all four masks or of the three for ambiguous prompts, by predicted IoU;
- the presence threshold of names: union IoU on names present, false positives on names absent;
- weights rounded to int8, a scale per output channel: what half the file would cost in quality;
- edges: the masks of boxes brought to the edges of the photo by a guided filter (He et al. 2010), by boundary IoU.
Sources that the set marks as not trained on stand apart ("unseen"); names are asked of the others only.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

import anymask
from anymask.data.coco import read_coco
from anymask.evaluation.baselines import whole_box
from anymask.evaluation.naming import draw_absent_names, present_names, union_of
from anymask.models.pocket import PocketModel
from anymask.ops import metrics
from anymask.ops.boxes import jittered
from anymask.ops.clicks import first_click
from anymask.prompting import place, predict
from anymask.types import Features, Image, Masks, Prompt

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.62, 0.65, 0.7, 0.8)


def main() -> None:
    """Measures everything in one pass over the images, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    model = anymask.load("pocket", device="cpu")
    assert isinstance(model, PocketModel)
    rounded = in_int8()
    ious: dict[str, list[float]] = {}
    names: list[tuple[bool, float, float]] = []
    rng = np.random.default_rng(0)
    dataset = read_coco(args.annotations, args.images)
    for entry in dataset.images[: args.limit]:
        image, truth = anymask.read_image(dataset.path(entry)), dataset.masks(entry)
        if not len(truth):
            continue
        features = model.encode([image])[0]
        group = "" if dataset.in_train(entry) else ", unseen"
        found = boxes(model, features, truth, image, rng) | clicks(model, features, truth)
        found |= edges(model, features, truth, image) | int8(rounded, rounded.encode([image])[0], truth)
        for name, values in found.items():
            ious.setdefault(name + group, []).extend(values.tolist())
        if not group:
            names += asked(model, features, truth, draw_absent_names(dataset, entry, rng))
    for name, values in ious.items():
        print(f"{name:42s} {np.mean(values):.4f}  ({len(values)} masks)")
    present, presence, iou = (np.asarray(column) for column in zip(*names, strict=True))
    for threshold in THRESHOLDS:
        yes = presence >= threshold
        text, false = np.where(yes, iou, 0)[present].mean(), (yes & (iou > 0))[~present].mean()
        print(f"presence >= {threshold:4.2f}: text IoU {text:.4f}, false positives {false:.4f}")


def boxes(
    model: PocketModel, features: Features, truth: Masks, image: Image, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """IoU without a limit, with it, and with a lower threshold, for tight boxes and two sizes of jitter."""
    targets, found = truth.masks, {}
    for jitter in (0.0, 0.05, 0.1):
        given = jittered(truth.boxes, jitter, image.size, rng) if jitter else truth.boxes
        logits, inside = boxed_logits(model, features, given), whole_box(image, given)
        found[f"box, jitter {jitter}: the whole box"] = metrics.iou(inside, targets)
        found[f"box, jitter {jitter}: free"] = metrics.iou(logits > 0, targets)
        found[f"box, jitter {jitter}: limited"] = metrics.iou((logits > 0) & inside, targets)
        found[f"box, jitter {jitter}: threshold -0.5"] = metrics.iou((logits > -0.5) & inside, targets)
    return found


def boxed_logits(model: PocketModel, features: Features, boxes: np.ndarray) -> np.ndarray:
    """Full-size logits of each box, not yet held to it."""
    decoded = model.decode([features], [[Prompt.box(*box) for box in boxes.tolist()]])[0]
    return np.concatenate([place(low, features.frame).numpy() for low in decoded.logits])


def clicks(model: PocketModel, features: Features, truth: Masks) -> dict[str, np.ndarray]:
    """IoU of one click: best of four and of three by predicted IoU, and the best there was of three."""
    targets = truth.masks
    prompts = [Prompt.point(*first_click(target)) for target in targets]
    four, three = predict(model, features, prompts), predict(model, features, prompts, multimask_output=True)
    every = metrics.iou(three.masks, targets[three.ids - 1]).reshape(len(targets), -1)
    return {
        "click: best of four": metrics.iou(four.masks, targets),
        "click: best of three": metrics.iou(three.best().masks, targets),
        "click: oracle of three": every.max(axis=1),
    }


def edges(model: PocketModel, features: Features, truth: Masks, image: Image) -> dict[str, np.ndarray]:
    """IoU and boundary IoU of boxes, as they are and after a guided filter with the grey photo as its guide."""
    targets = truth.masks
    logits = boxed_logits(model, features, truth.boxes)
    guide = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    filtered = np.stack([guided_filter(guide, 1 / (1 + np.exp(-one))) for one in logits])
    found = {}
    for name, masks in (("as they are", logits > 0), ("guided filter", filtered > 0.5)):
        found[f"edges: {name}"] = metrics.iou(masks, targets)
        found[f"edges: {name}, boundary IoU"] = metrics.boundary_iou(masks, targets)
    return found


def guided_filter(guide: np.ndarray, mask: np.ndarray, radius: int = 4, smoothing: float = 1e-4) -> np.ndarray:
    """The mask (0 to 1) as a locally linear function of the guide."""

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.boxFilter(values, -1, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT))

    of_guide, of_mask = mean(guide), mean(mask)
    slope = (mean(guide * mask) - of_guide * of_mask) / (mean(guide * guide) - of_guide**2 + smoothing)
    return np.asarray(mean(slope) * guide + mean(of_mask - slope * of_guide))


def int8(model: PocketModel, features: Features, truth: Masks) -> dict[str, np.ndarray]:
    """IoU of boxes and clicks from rounded weights."""
    targets = truth.masks
    boxed = predict(model, features, [Prompt.box(*box) for box in truth.boxes.tolist()])
    clicked = predict(model, features, [Prompt.point(*first_click(target)) for target in targets])
    return {"int8: box": metrics.iou(boxed.masks, targets), "int8: click": metrics.iou(clicked.masks, targets)}


def in_int8() -> PocketModel:
    """A second model whose matrices and kernels hold 255 values per output channel."""
    rounded = anymask.load("pocket", device="cpu")
    assert isinstance(rounded, PocketModel)
    with torch.no_grad():
        for weight in rounded.network.parameters():
            if weight.ndim > 1:
                scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-9).view(-1, *[1] * (weight.ndim - 1)) / 127
                weight.copy_((weight / scale).round() * scale)
    return rounded


def asked(model: PocketModel, features: Features, truth: Masks, absent: list[str]) -> list[tuple[bool, float, float]]:
    """(present, presence, IoU of the union; for an absent name 1 if the union is not empty) of every name."""
    present = present_names(truth)
    names = [*present, *absent]
    if not names:
        return []
    rows = []
    grounded = model.ground(features, model.encode_text([Prompt.text(name) for name in names]), instances=False)
    for name, one in zip(names, grounded, strict=True):
        union = (place(one.semantic_logits[None], features.frame) > 0).numpy()
        score = float(metrics.iou(union, union_of(truth, (name,))[None])[0]) if name in present else float(union.any())
        rows.append((name in present, one.presence, score))
    return rows


if __name__ == "__main__":
    with torch.inference_mode():
        main()
