"""What tiles are worth: boxes, names and everything mode in mosaics of labelled photos, in one look and in tiles.

    python benchmarks/tiles.py --images val --annotations val.json --source voc2012aug_animals
    python benchmarks/tiles.py --images val --annotations val.json --source voc2012aug_animals --everything

Photos are set at random into a grey canvas of COLUMNS x ROWS cells, so that each is a small part of a big image.
Boxes: mean IoU of the masks with the labelled ones. Names: all of the source are asked, `semantic`; how many of those
answered are in the mosaic (precision), how many of those in it are answered (recall), and the mean IoU of the unions of
these, 0 where nothing is answered.

With `--everything` everything mode instead: how many of the labelled objects are found (recall at IoU 0.5 and 0.75),
how many masks end along a border of a tile, and how many pairs of masks are nearly one, in all mosaics together.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import anymask
from anymask.automatic import everything
from anymask.data.coco import CocoImage, CocoSet, read_coco
from anymask.models.protocol import Model
from anymask.ops import rle
from anymask.ops.grids import CropBox
from anymask.ops.rle import Rle
from anymask.segmentation import segment
from anymask.tiling import settled_overlap, tiles
from anymask.types import Image, Masks

GREY = (120, 110, 95)
STRAIGHT = 16  # pixels along the border of a tile from which a mask that ends there counts as cut
ALIKE = 0.8  # IoU of masks that are nearly one


def main() -> None:
    """Measures every mosaic in every way, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--source", default="voc2012aug_animals")
    parser.add_argument("--mosaics", type=int, default=8)
    parser.add_argument("--photos", type=int, default=8, help="in each mosaic")
    parser.add_argument("--cells", type=int, nargs=2, default=(5, 4), metavar=("COLUMNS", "ROWS"))
    parser.add_argument("--side", type=int, default=500, help="of a cell, in pixels")
    parser.add_argument("--tiles", type=int, nargs="*", default=(1000, 500))
    parser.add_argument("--everything", action="store_true", help="measure everything mode, not boxes and names")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, dataset, rng = (
        anymask.load("pocket", device="cpu"),
        read_coco(args.annotations, args.images),
        np.random.default_rng(0),
    )
    entries = [entry for entry in dataset.images if entry.source == args.source and len(dataset.masks(entry))]
    names = list(dataset.sources[args.source]["names"])
    measured: dict[int | None, list[dict[str, float]]] = defaultdict(list)
    for _ in range(args.mosaics):
        chosen = [entries[i] for i in rng.choice(len(entries), args.photos, replace=False)]
        image, truth = mosaic(dataset, chosen, tuple(args.cells), args.side, rng)
        for tile in (None, *args.tiles):
            found = look(model, image, truth, tile) if args.everything else measure(model, image, truth, names, tile)
            measured[tile].append(found)
    summarise = overall if args.everything else summary
    rows = [{"tile": tile or "-", **summarise(some)} for tile, some in measured.items()]
    if args.json:
        print(json.dumps({"size": [args.side * side for side in args.cells], "rows": rows}, indent=2))
        return
    print("  ".join(f"{key:>14}" for key in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>14.3f}" if isinstance(value, float) else f"{value:>14}" for value in row.values()))


def mosaic(
    dataset: CocoSet, entries: list[CocoImage], cells: tuple[int, int], side: int, rng: np.random.Generator
) -> tuple[Image, Masks]:
    """Photos at random places within cells of their own, and their labelled masks."""
    columns, rows = cells
    canvas = np.full((rows * side, columns * side, 3), GREY, np.uint8)
    rles: list[Rle] = []
    labels: list[str] = []
    for cell, entry in zip(rng.choice(columns * rows, len(entries), replace=False), entries, strict=True):
        pixels, masks = anymask.read_image(dataset.path(entry)).pixels, dataset.masks(entry)
        h, w = pixels.shape[:2]
        x, y = cell % columns * side + rng.integers(side - w + 1), cell // columns * side + rng.integers(side - h + 1)
        canvas[y : y + h, x : x + w] = pixels
        rles += [rle.placed(one, (int(x), int(y)), canvas.shape[:2]) for one in masks.rles]
        labels += masks.labels
    return Image(canvas), Masks.from_rles(rles, canvas.shape[:2], labels=labels)


def measure(model: Model, image: Image, truth: Masks, names: list[str], tile: int | None) -> dict[str, float]:
    """Boxes and names of one mosaic."""
    start = time.perf_counter()
    boxed = segment(image, boxes=truth.boxes, model=model, tile=tile)
    middle = time.perf_counter()
    named = segment(image, text=names, semantic=True, model=model, tile=tile)
    end = time.perf_counter()
    ious = [rle.iou([mask], [true])[0, 0] for mask, true in zip(boxed.rles, truth.rles, strict=True)]
    answers, there = dict(zip(named.labels, named.rles, strict=True)), set(truth.labels) & set(names)
    unions = {name: rle.merge(truth[truth.rows_named(name)].rles, truth.size) for name in there}
    overlap = [float(rle.iou([answers[name]], [unions[name]])[0, 0]) if name in answers else 0.0 for name in there]
    return {
        "box mIoU": float(np.mean(ious)),
        "answered": len(answers),
        "there": len(there),
        "right": len(there & set(answers)),
        "text IoU": float(np.mean(overlap)),
        "box s": middle - start,
        "text s": end - middle,
    }


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over mosaics; precision and recall over all names of all."""
    total = {key: float(sum(row[key] for row in rows)) for key in rows[0]}
    return {
        "box mIoU": total["box mIoU"] / len(rows),
        "text IoU": total["text IoU"] / len(rows),
        "precision": total["right"] / max(total["answered"], 1),
        "recall": total["right"] / total["there"],
        "box s": total["box s"] / len(rows),
        "text s": total["text s"] / len(rows),
    }


def look(model: Model, image: Image, truth: Masks, tile: int | None) -> dict[str, float]:
    """Everything mode in one mosaic."""
    start = time.perf_counter()
    found = everything(image, model=model, tile=tile)
    seconds = time.perf_counter() - start
    best = rle.iou(truth.rles, found.rles).max(axis=1, initial=0)
    crops = tiles(image.size, tile, settled_overlap(tile, None)) if tile else []
    return {
        "labelled": len(truth),
        "at 0.5": int((best >= 0.5).sum()),
        "at 0.75": int((best >= 0.75).sum()),
        "masks": len(found),
        "cut": sum(is_cut(rle.decode([one], image.size)[0], crops) for one in found.rles),
        "alike": int((np.triu(rle.iou(found.rles, found.rles), 1) > ALIKE).sum()),
        "s": seconds,
    }


def is_cut(mask: np.ndarray, crops: list[CropBox]) -> bool:
    """Whether a mask ends straight along an inner border of a tile."""
    framed = np.pad(mask, 1, mode="edge")  # at the border of the image nothing ends
    for x0, y0, x1, y1 in crops:
        rows, columns = slice(y0 + 1, y1 + 1), slice(x0 + 1, x1 + 1)
        ends = (
            framed[rows, x0 + 1] & ~framed[rows, x0],
            framed[rows, x1] & ~framed[rows, x1 + 1],
            framed[y0 + 1, columns] & ~framed[y0, columns],
            framed[y1, columns] & ~framed[y1 + 1, columns],
        )
        if max(end.sum() for end in ends) >= STRAIGHT:
            return True
    return False


def overall(rows: list[dict[str, float]]) -> dict[str, float]:
    """Recall over the objects of all mosaics; masks and seconds of one."""
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    return {
        "recall at 0.5": total["at 0.5"] / total["labelled"],
        "recall at 0.75": total["at 0.75"] / total["labelled"],
        "masks": total["masks"] / len(rows),
        "cut": total["cut"],
        "alike": total["alike"],
        "s": total["s"] / len(rows),
    }


if __name__ == "__main__":
    main()
