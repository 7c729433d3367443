"""What names cost: 1 to 30 names on a photo with pocket, and the stages of GroundingDINO-tiny with SAM 2.1-tiny.

    python benchmarks/text_speed.py --images photos/*.jpg                    # two tables
    python benchmarks/text_speed.py --images photos --skip-stages --output docs/text_speed.json

All is computed anew in every call, the features of the photo included. The one name is what pocket is surest of in the
photo; the others are everyday names, in a random order (most are not there), or the surest first, which is the worst
case. Weights of the two large networks are random, which costs the same time: only the number of boxes is made up.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anymask.data.images import read_image
from anymask.grounding.pipeline import Grounding, GroundingSettings
from anymask.grounding.pocket_scorer import PocketScorer
from anymask.models.load import load
from anymask.models.protocol import Model
from anymask.ops.tables import align
from anymask.segmentation import segment
from anymask.types import Image, Prompt

COUNTS = (1, 3, 10, 30)
ROUNDS = 5
BOXES = 5  # that the threshold of the detector with random weights lets through
NAMES = (
    *("person", "car", "dog", "cat", "tree", "chair", "table", "bottle", "cup", "bowl", "book", "bird", "boat", "bus"),
    *("truck", "bicycle", "horse", "cow", "flower", "sign", "window", "door", "shoe", "hat", "bag", "ball", "plate"),
    *("fruit", "lamp", "clock"),
)


@dataclass(frozen=True)
class Row:
    """So many names in one order: medians over the photos of the seconds, and of the ratio to one name."""

    order: str
    names: int
    counted: float  # names judged to be there, the mean
    seconds: float
    ratio: float


@dataclass(frozen=True)
class Stages:
    """One image through a detector and a model: seconds of each stage, and passes through each image encoder."""

    names: int
    masks: int
    detector_passes: int
    model_passes: int
    seconds: dict[str, float]


def measure_names(model: Model, images: Sequence[Image], rounds: int = ROUNDS) -> list[Row]:
    """A row for each order and number of names."""
    times: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    for image in images:
        for order, names, presence in orders(model, image):
            best = dict.fromkeys(COUNTS, float("inf"))
            for _ in range(rounds):
                for count in COUNTS:
                    best[count] = min(best[count], _timed(partial(segment, image, text=names[:count], model=model)))
            for count in COUNTS:
                there = sum(presence[name] >= model.capabilities.thresholds.presence for name in names[:count])
                times.setdefault((order, count), []).append((best[count], best[count] / best[1], there))
    return [
        Row(order, count, statistics.fmean(there), statistics.median(seconds), statistics.median(ratios))
        for (order, count), rows in times.items()
        for seconds, ratios, there in [zip(*rows, strict=True)]
    ]


def orders(model: Model, image: Image) -> list[tuple[str, list[str], dict[str, float]]]:
    """The names in a random order and the surest first, either way after the surest; and how sure each is."""
    found = model.ground(model.encode([image])[0], model.encode_text([Prompt.text(name) for name in NAMES]), False)
    presence = {name: one.presence for name, one in zip(NAMES, found, strict=True)}
    surest = sorted(NAMES, key=lambda name: -presence[name])
    mixed = [surest[0], *np.random.default_rng(0).permutation(surest[1:]).tolist()]
    return [("random", mixed, presence), ("surest first", surest, presence)]


def measure_stages(image: Image, counts: Sequence[int] = (1, 10)) -> list[Stages]:
    """GroundingDINO-tiny finds the names, SAM 2.1-tiny makes the masks and pocket judges them."""
    detector, dino_encoder = _dino()
    model, sam_encoder = _sam()
    passes = {"dino": 0, "sam": 0}
    dino_encoder.register_forward_hook(lambda *_: passes.__setitem__("dino", passes["dino"] + 1))
    sam_encoder.register_forward_hook(lambda *_: passes.__setitem__("sam", passes["sam"] + 1))
    found = []
    for count in counts:
        settings = GroundingSettings(box_threshold=_threshold(detector, image, NAMES[:count]), text_threshold=0.0)
        grounding = Grounding(detector, PocketScorer(load("pocket", "cpu")), settings)
        passes.update(dino=0, sam=0)
        masks = segment(image, text=NAMES[:count], model=model, detector=grounding)
        found.append(Stages(count, len(masks), passes["dino"], passes["sam"], masks.made_by["seconds"]))
    return found


def _threshold(detector: Any, image: Image, names: Sequence[str]) -> float:
    """Which lets `BOXES` boxes through."""
    from anymask.grounding.protocol import DetectionThresholds

    scores = np.sort(detector.detect(image, names, DetectionThresholds(0.0, 0.0)).scores)
    return float(scores[-min(BOXES, len(scores))])


def _dino() -> tuple[Any, torch.nn.Module]:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessor

    from anymask.grounding.dino import DinoDetector, shipped_tokenizer
    from anymask.grounding.dino_keys import config_of
    from anymask.grounding.networks import configured

    network: Any = GroundingDinoForObjectDetection(configured(config_of("swint"), Path("grounding-dino-tiny"))).eval()
    encoder = network.model.backbone.conv_encoder
    return DinoDetector(
        network, shipped_tokenizer(), GroundingDinoImageProcessor(), name="grounding-dino-tiny"
    ), encoder


def _sam() -> tuple[Any, torch.nn.Module]:
    from transformers import Sam2Config, Sam2Model

    from anymask.models.sam2 import Sam2
    from anymask.models.sam2_keys import config_of

    network = Sam2Model(Sam2Config(**config_of("hiera_tiny_2.1"))).eval()
    return Sam2(network, "cpu", "sam2.1-hiera-tiny"), network.vision_encoder


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _names_table(rows: Sequence[Row]) -> str:
    lines = [["order", "names", "there", "ms", "to one name"]]
    lines += [
        [row.order, str(row.names), f"{row.counted:.1f}", f"{1000 * row.seconds:.0f}", f"{row.ratio:.2f}"]
        for row in rows
    ]
    return align(lines, [False, True, True, True, True])


def _stages_table(rows: Sequence[Stages]) -> str:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.seconds))
    lines = [["names", "masks", "detector passes", "model passes", *(f"{stage} s" for stage in stages)]]
    for row in rows:
        numbers = (row.names, row.masks, row.detector_passes, row.model_passes)
        lines.append([*map(str, numbers), *(f"{row.seconds.get(stage, 0):.2f}" for stage in stages)])
    return align(lines, [True] * len(lines[0]))


def main() -> None:
    """Measures, prints the tables, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="photos, or folders of them")
    parser.add_argument("--limit", type=int, default=20, help="photos, at most")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-names", action="store_true", help="only the stages")
    parser.add_argument("--skip-stages", action="store_true", help="only the names")
    parser.add_argument("--output", type=Path, help="write the JSON here")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = [file for path in args.images for file in (sorted(path.glob("*.jpg")) if path.is_dir() else [path])]
    images = [read_image(file) for file in files[: args.limit]]
    names = [] if args.skip_names else measure_names(load("pocket", "cpu"), images, args.rounds)
    stages = [] if args.skip_stages else measure_stages(images[0])
    machine = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
    found = {"machine": machine, "photos": len(images), "names": list(map(asdict, names))}
    found["stages"] = list(map(asdict, stages))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    tables = [_names_table(names)] * bool(names) + [_stages_table(stages)] * bool(stages)
    print(json.dumps(found) if args.json else "\n\n".join(tables))


if __name__ == "__main__":
    main()
