"""What clean-up does to masks: the mean boundary IoU of pocket's masks as they are, and after each clean-up.

    python benchmarks/cleanup.py --images val --annotations val.json

Masks from the box of every labelled object, and of those that have a name the instance of it that overlaps most, if one
does. Prints JSON: for each kind of mask a row per source and one over all.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import anymask
from anymask.data.coco import read_coco
from anymask.evaluation.naming import present_names
from anymask.models.protocol import Model
from anymask.names import find
from anymask.ops import metrics, rle
from anymask.ops.cleaning import CLEANUPS, clean_rles
from anymask.ops.sampling import stratified
from anymask.prompting import predict
from anymask.types import Features, Masks, Prompt

BATCH = 32


def main() -> None:
    """Measures all, and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    model = anymask.load("pocket", device="cpu")
    dataset = read_coco(args.annotations, args.images)
    values: dict[str, list[tuple[str, dict[str, float]]]] = {"boxes": [], "names": []}
    for row in stratified([entry.source for entry in dataset.images], args.limit, 0):
        entry = dataset.images[row]
        truth = dataset.masks(entry)
        [features] = model.encode([anymask.read_image(dataset.path(entry))])
        for kind, predicted, target in answers(model, features, truth[truth.areas > 0]):
            values[kind] += [(entry.source, one) for one in boundary_ious(predicted, target)]
    print(json.dumps({kind: table(rows) for kind, rows in values.items()}, indent=1))


def answers(model: Model, features: Features, truth: Masks) -> Iterator[tuple[str, Masks, Masks]]:
    """Masks of boxes and of names beside the objects that they should be."""
    for start in range(0, len(truth), BATCH):
        target = truth[start : start + BATCH]
        yield "boxes", predict(model, features, [Prompt.box(*box) for box in target.boxes.tolist()]), target
    names = present_names(truth)
    found = find(model, features, names) if names else Masks.empty(truth.size)
    for name in names:
        instances = found[found.rows_named(name)]
        target = truth[truth.rows_named(name)]
        overlaps = rle.iou(target.rles, instances.rles)
        seen = overlaps.max(axis=1, initial=0) > 0
        if seen.any():
            yield "names", instances[overlaps[seen].argmax(axis=1)], target[seen]


def boundary_ious(predicted: Masks, target: Masks) -> list[dict[str, float]]:
    """Of each mask, as it is and cleaned."""
    variants = {"raw": predicted.rles} | {name: clean_rles(predicted.rles, how) for name, how in CLEANUPS.items()}
    columns = {
        name: metrics.boundary_iou(rle.decode(rles, target.size), target.masks) for name, rles in variants.items()
    }
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(target))]


def table(rows: list[tuple[str, dict[str, float]]]) -> list[dict[str, object]]:
    """Means of each source, and over all masks."""
    by_source = {source: [one for other, one in rows if other == source] for source in sorted({row[0] for row in rows})}
    return [
        {"source": source, "masks": len(ones)}
        | {name: round(float(np.mean([one[name] for one in ones])), 5) for name in ones[0]}
        for source, ones in {**by_source, "all": [one for _, one in rows]}.items()
    ]


if __name__ == "__main__":
    main()
