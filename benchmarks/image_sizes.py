"""What other input sizes and windows cost and gain: time for SAM, SAM 2 and pocket, for pocket also quality.

    python benchmarks/image_sizes.py --images val --annotations val.json --json docs/image_sizes.json

Prints tables and with --json writes a Report. SAM and SAM 2 have random weights: speed does not depend on them, quality
is not measured. Times are CPU time of one thread, the least of some turns that all sizes of a model take one after
another, so that what else runs on the machine counts little. Without --images only times.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

import anymask
from anymask import Image, Prompt
from anymask.cli.commands import table
from anymask.evaluation.promptable import PromptableSettings, evaluate_promptable
from anymask.evaluation.reports import machine, versions, write_report
from anymask.evaluation.summaries import summarise
from anymask.models import mobile, sam2_keys, sam_keys
from anymask.models.image_sizes import read_size, shown
from anymask.models.mobile import MobileSam, MobileSamConfig
from anymask.models.promptable import PromptableModel
from anymask.models.sam import Sam
from anymask.models.sam2 import Sam2
from anymask.prompting import predict
from anymask.types import Report

POCKET_SIZES = ("256", "320", "384", "384x512", "512", "640")
MEASURES = ("click1_miou", "click3_miou", "box_miou", "box_boundary_iou", "text_miou", "box_miou_unseen")


@dataclass(frozen=True)
class Family:
    """A model to be timed at its own size and windows first, then at others."""

    name: str
    build: Callable[[], PromptableModel]
    sizes: tuple[str, ...]
    windows: tuple[int | None, ...] = (None,)


def vit_b() -> Sam:
    """SAM ViT-B with random weights."""
    return Sam(SamModel(SamConfig(**sam_keys.config_of("vit_b"))))


def hiera_tiny() -> Sam2:
    """SAM 2.1 Hiera-tiny with random weights."""
    return Sam2(Sam2Model(Sam2Config(**sam2_keys.config_of("hiera_tiny_2.1"))))


def mobile_sam() -> MobileSam:
    """MobileSAM with random weights."""
    network = mobile.build(MobileSamConfig())
    state = {name: torch.rand(tensor.shape).to(tensor.dtype) * 0.02 for name, tensor in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    return MobileSam(network)


FAMILIES = (
    Family("pocket", lambda: anymask.load("pocket", device="cpu"), ("384", *POCKET_SIZES)),
    Family("mobile-sam", mobile_sam, ("1024", "768", "512")),
    Family("sam2 hiera-tiny", hiera_tiny, ("1024", "768x1024", "768", "512")),
    Family("sam vit_b", vit_b, ("1024", "768x1024", "768", "512"), (14, 16, 8)),
)


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, help="folder of labelled pictures, for pocket's quality")
    parser.add_argument("--annotations", type=Path, help="their COCO file")
    parser.add_argument("--limit", type=int, default=60, help="pictures of it (default: 60)")
    parser.add_argument("--family", action="append", choices=[one.name for one in FAMILIES], help="time these alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, nargs="?", const=Path("image_sizes.json"), metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [one for one in FAMILIES if not args.family or one.name in args.family]
    speed = [row for family in chosen for row in times(family, args.repeats)]
    print(table(speed))
    quality = list(scores(args.images, args.annotations, args.limit)) if args.images else []
    if quality:
        print(table(quality))
    if args.json:
        settings = {"threads": 1, "repeats": args.repeats, "limit": args.limit if quality else None}
        tables = {"speed": speed, "quality": quality}
        report = Report("image sizes", {}, settings, tables=tables, versions=versions(), machine=machine())
        write_report(args.json, report)


def times(family: Family, repeats: int) -> list[dict[str, Any]]:
    """Of encoding a photo of 768 x 1024, and of a click on it, at every size and window."""
    model = family.build()
    image = Image(np.random.default_rng(0).integers(0, 255, (768, 1024, 3), dtype=np.uint8))
    cases = list(dict.fromkeys((size, window) for size in family.sizes for window in family.windows))
    found: dict[tuple[str, int | None], list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for size, window in cases:
            model.set_input_size(read_size(size))
            if window is not None:
                model.set_window_size(window)
            found[size, window].append(encode_and_click(model, image))
    best = {case: np.min(some, axis=0) for case, some in found.items()}
    own = best[cases[0]].sum()
    return [
        {
            "model": family.name,
            "image_size": shown(read_size(size)),
            "window_size": window,
            "encode_ms": round(float(encode), 1),
            "click_ms": round(float(click), 1),
            "times_as_fast": round(float(own / (encode + click)), 2),
        }
        for (size, window), (encode, click) in best.items()
    ]


def encode_and_click(model: PromptableModel, image: Image) -> tuple[float, float]:
    """Milliseconds of CPU time."""
    start = time.process_time()
    features = model.encode([image])[0]
    encoded = time.process_time()
    predict(model, features, [Prompt.point(512, 384)])
    return 1000 * (encoded - start), 1000 * (time.process_time() - encoded)


def scores(images: Path, annotations: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Pocket's means on the same pictures at each size."""
    for size in POCKET_SIZES:
        settings = PromptableSettings(images, annotations, image_size=size, limit=limit, noc_clicks=0, device="cpu")
        model = anymask.load("pocket", device="cpu", image_size=size)
        report = summarise(evaluate_promptable(model, settings), settings, model)
        yield {"image_size": size, **{measure: report.metrics.get(measure) for measure in MEASURES}}


if __name__ == "__main__":
    main()
