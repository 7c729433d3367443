"""How pocket answers the words it was trained on beside the labels' own: synonyms, groups, names foreign to a photo.

    python benchmarks/pocket_words.py --images val --annotations val.json

Each name that is there is asked as itself and by one synonym; each group of names that is there as one union, where the
source labels nearly all of it. Each photo is also asked for six names of foreign sources (`pictures.FOREIGN`).
Sources of the training set; a name judged absent counts as IoU 0.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

import anymask
from anymask.data.coco import UNNAMED, read_coco
from anymask.evaluation.naming import present_names, union_of
from anymask.models.protocol import Model
from anymask.ops import metrics
from anymask.ops.sampling import stratified
from anymask.prompting import place
from anymask.training.pictures import FOREIGN
from anymask.training.vocabulary import GROUP_SOURCES, GROUPS, SYNONYMS
from anymask.types import Features, Masks, Prompt

FOREIGN_NAMES = 6


def main() -> None:
    """Asks, counts, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    model = anymask.load(args.model, device="cpu")
    dataset = read_coco(args.annotations, args.images)
    trained = [entry for entry in dataset.images if dataset.in_train(entry)]
    labelled: dict[str, set[str]] = defaultdict(set)
    for entry in trained:
        labelled[entry.source].update(present_names(dataset.masks(entry)))
    scores: dict[str, list[float]] = defaultdict(list)
    for row in stratified([entry.source for entry in trained], args.limit, 0):
        entry, rng = trained[row], np.random.default_rng((0, row))
        truth = dataset.masks(entry)
        features = model.encode([anymask.read_image(dataset.path(entry))])[0]
        wanted = targets(truth, entry.source, rng)
        foreign = sorted({name for source in FOREIGN.get(entry.source, ()) for name in labelled[source]} - {UNNAMED})
        absent = rng.permutation(sorted(set(foreign) - labelled[entry.source]))[:FOREIGN_NAMES].tolist()
        masks = unions(model, features, [word for _, word, _ in wanted] + absent)
        for (kind, _, target), mask in zip(wanted, masks, strict=False):
            scores[kind].append(float(metrics.iou(mask[None], target[None])[0]))
        scores["foreign names, share claimed"] += [float(mask.any()) for mask in masks[len(wanted) :]]
    for kind, values in scores.items():
        if values:
            print(f"{kind:32s} {np.mean(values):.3f}  ({len(values)})")


def targets(truth: Masks, source: str, rng: np.random.Generator) -> list[tuple[str, str, np.ndarray]]:
    """(kind, word, mask of all it means) of every word to ask for."""
    names, found = present_names(truth), []
    for name in names:
        if name in SYNONYMS:
            target = union_of(truth, (name,))
            found.append(("names that have a synonym", name, target))
            found.append(("the same by a synonym", str(rng.choice(SYNONYMS[name])), target))
    for group, members in GROUPS.items():
        if source in GROUP_SOURCES[group] and not set(members).isdisjoint(names):
            found.append(("groups", group, union_of(truth, members)))
    return found


def unions(model: Model, features: Features, words: list[str]) -> list[np.ndarray]:
    """What the model finds for each word; nothing where it judges it absent."""
    if not words:
        return []
    grounded = model.ground(features, model.encode_text([Prompt.text(word) for word in words]), instances=False)
    least = model.capabilities.thresholds.presence
    return [(place(g.semantic_logits[None], features.frame) > 0).numpy()[0] & (g.presence >= least) for g in grounded]


if __name__ == "__main__":
    main()
