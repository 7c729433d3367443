"""Which masks of a grid of clicks are worth keeping: the defaults of pocket for everything mode come from here.

    python benchmarks/pocket_thresholds.py --images val --annotations val.json --limit 60

Everything mode with each grid and each pair of thresholds. Recall: labelled objects that a mask covers with IoU 0.5;
precision: masks that cover a labelled object so, a lower bound, since not everything is labelled. Means over images, of
sources of the training set alone.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from time import perf_counter

import numpy as np

import anymask
from anymask.data.coco import read_coco
from anymask.ops import rle
from anymask.ops.sampling import stratified
from anymask.types import Masks

# Points a side, least predicted IoU, least stability.
SETTINGS = (
    (12, 0.4, 0.5),
    (16, 0.3, 0.5),
    (16, 0.4, 0.5),
    (16, 0.4, 0.6),
    (16, 0.5, 0.5),
    (16, 0.5, 0.6),
    (16, 0.6, 0.6),
    (24, 0.4, 0.5),
    (32, 0.4, 0.5),
)


def main() -> None:
    """Measures every setting on every image, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    model = anymask.load("pocket", device="cpu")
    dataset = read_coco(args.annotations, args.images)
    trained = [entry for entry in dataset.images if dataset.in_train(entry)]
    found: dict[tuple[int, float, float], list[tuple[float, float, float, float]]] = defaultdict(list)
    for row in stratified([entry.source for entry in trained], args.limit, 0):
        image, truth = anymask.read_image(dataset.path(trained[row])), dataset.masks(trained[row])
        for side, sure, stable in SETTINGS if len(truth) else ():
            start = perf_counter()
            masks = anymask.everything(
                image, model=model, points_per_side=side, pred_iou_thresh=sure, stability_score_thresh=stable
            )
            found[side, sure, stable].append((*measure(masks, truth), perf_counter() - start))
    print("| points a side | predicted IoU | stability | masks | recall | precision | seconds |")
    print("|---|---|---|---|---|---|---|")
    for (side, sure, stable), rows in found.items():
        count, recall, precision, seconds = np.nanmean(np.asarray(rows), axis=0)
        print(f"| {side} | {sure} | {stable} | {count:.1f} | {recall:.3f} | {precision:.3f} | {seconds:.1f} |")


def measure(masks: Masks, truth: Masks) -> tuple[float, float, float]:
    """How many masks, recall, precision (NaN for none)."""
    if not len(masks):
        return 0.0, 0.0, float("nan")
    hit = rle.iou(masks.rles, truth.rles) >= 0.5
    return float(len(masks)), float(hit.any(axis=0).mean()), float(hit.any(axis=1).mean())


if __name__ == "__main__":
    main()
