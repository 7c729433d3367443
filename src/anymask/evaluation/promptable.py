"""How well a model answers clicks, boxes and names, measured on any COCO-format set.

- Clicks: `clicking.py`. After 1, 3 and 5 clicks; after the first also the best of the candidates (an oracle) beside the
  one of the highest predicted IoU, which is the one that counts.
- NoC@80, NoC@85: how many clicks until the IoU is that high; an object that never gets there counts as `noc_clicks`.
- Boxes: the tight box of the true mask (`box_jitter` makes it a hasty one); beside it what a box gives without a model.
- Names: `naming.py`.

`summaries.py` makes a Report of the records.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from anymask.data.coco import CocoImage, CocoSet
from anymask.evaluation.baselines import BASELINES
from anymask.evaluation.clicking import GOOD_ENOUGH, click
from anymask.evaluation.labelled import ALL, read_entry, read_set, timed
from anymask.evaluation.naming import NameRecord, ask, draw_absent_names
from anymask.models.protocol import Model
from anymask.ops import metrics
from anymask.ops.boxes import jittered
from anymask.ops.clicks import first_click
from anymask.prompting import predict
from anymask.types import Features, Image, Masks, Prompt

CLICK_COUNTS = (1, 3, 5)
NOC_THRESHOLDS = {"noc80": 0.80, "noc85": GOOD_ENOUGH}


@dataclass(frozen=True)
class PromptableSettings:
    """What to measure, and on what."""

    images: Path = field(metadata={"help": "folder of the pictures"})
    annotations: Path = field(metadata={"help": "COCO instance file of these pictures"})
    model: str = field(default="pocket", metadata={"help": "catalogue name, hub id, folder or file of a model"})
    dtype: str = field(default="float32", metadata={"help": "auto, float32, bfloat16 or float16"})
    runtime: str = field(default="auto", metadata={"help": "auto, eager, compile, openvino or onnxruntime"})
    image_size: str | None = field(
        default=None, metadata={"help": "input of the encoder in pixels: a side, or height x width as 768x1024"}
    )
    window_size: int | None = field(default=None, metadata={"help": "windows of SAM's encoder in cells of 16 pixels"})
    limit: int | None = field(default=None, metadata={"help": "take this many images, stratified by source"})
    seed: int = field(default=0, metadata={"help": "of the draw of images, absent names, jitter and intervals"})
    unseen_source: tuple[str, ...] = field(
        default=(), metadata={"help": "a source the model was not trained on, beside those the set says (repeat)"}
    )
    clicks: int = field(default=5, metadata={"help": "clicks that every object gets"})
    noc_clicks: int = field(
        default=20, metadata={"help": "clicks at most for NoC: what never gets there counts so many"}
    )
    box_jitter: float = field(
        default=0.0, metadata={"help": "move each box edge by a normal of this share of the side"}
    )
    text: bool = field(default=True, metadata={"help": "ask for names, present and absent"})
    baselines: bool = field(
        default=False, metadata={"help": "also the whole box and GrabCut (up to a second a mask), from the same boxes"}
    )
    batch: int = field(default=32, metadata={"help": "objects that are decoded together"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})

    def __post_init__(self) -> None:
        lowest = {"clicks": 1, "noc_clicks": 0, "batch": 1, "box_jitter": 0, "seed": 0}
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")


@dataclass(frozen=True)
class ImageRecord:
    """What was measured on one image: for each measure a value per mask, and how its names were answered.

    `click_seconds` is one decode of one click, NaN without a mask; `total` is the number of images in the run.
    """

    file_name: str
    source: str
    in_train: bool
    masks: int
    values: Mapping[str, Float[np.ndarray, "n"]]
    names: tuple[NameRecord, ...]
    encode_seconds: float
    click_seconds: float
    total: int


def evaluate_promptable(model: Model, settings: PromptableSettings) -> Iterator[ImageRecord]:
    """Measure image by image, in the order of the file. Leave the loop to stop: `summarise` takes any part of them.

    Raises ValueError or FileNotFoundError for a set that cannot be measured before the first image is encoded.
    """
    dataset, entries = read_set(settings.annotations, settings.images, settings.limit, settings.seed)
    _check_sources(settings, dataset)
    for entry in entries:
        yield _measure(model, settings, dataset, entry, len(entries))


def _measure(model: Model, settings: PromptableSettings, dataset: CocoSet, entry: CocoImage, total: int) -> ImageRecord:
    image, truth = read_entry(dataset, entry), dataset.masks(entry)
    truth = truth[truth.areas > 0]
    rng = np.random.default_rng((settings.seed, entry.id))
    absent = draw_absent_names(dataset, entry, rng)
    [features], encode_seconds = timed(lambda: model.encode([image]))
    names = ask(model, features, truth, absent) if settings.text and model.capabilities.text else ()
    return ImageRecord(
        file_name=entry.file_name,
        source=entry.source or ALL,
        in_train=_is_in_train(settings, dataset, entry),
        masks=len(truth),
        values=_values(model, features, image, truth, settings, rng),
        names=names,
        encode_seconds=encode_seconds,
        click_seconds=_time_click(model, features, truth),
        total=total,
    )


def _values(
    model: Model, features: Features, image: Image, truth: Masks, settings: PromptableSettings, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "n"]]:
    """Every measure of the masks, batch after batch of objects, so that memory does not grow with their number."""
    batches = [truth[start : start + settings.batch] for start in range(0, len(truth), settings.batch)]
    parts = [_values_of_batch(model, features, image, batch, settings, rng) for batch in batches]
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts[0] if parts else ())}


def _values_of_batch(
    model: Model, features: Features, image: Image, truth: Masks, settings: PromptableSettings, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "n"]]:
    targets, boxes = truth.masks, truth.boxes
    if settings.box_jitter:
        boxes = jittered(boxes, settings.box_jitter, truth.size, rng)
    values = _click_values(model, features, targets, settings)
    answers = predict(model, features, [Prompt.box(*box) for box in boxes.tolist()])
    values |= _box_values("box", answers.masks, targets)
    values["box_predicted_iou"] = np.asarray(answers.scores, np.float64)
    for name, baseline in BASELINES.items() if settings.baselines else ():
        values |= _box_values(name, baseline(image, boxes), targets)
    return values


def _click_values(
    model: Model, features: Features, targets: Bool[np.ndarray, "n h w"], settings: PromptableSettings
) -> dict[str, Float[np.ndarray, "n"]]:
    clicked = click(model, features, targets, clicks=settings.clicks, noc_clicks=settings.noc_clicks)
    values = {f"click{k}_miou": clicked.ious[:, k - 1] for k in CLICK_COUNTS if k <= settings.clicks}
    values["click1_best_miou"] = clicked.best_of_first
    values["click1_predicted_iou"] = clicked.predicted_of_first
    for name, threshold in NOC_THRESHOLDS.items() if settings.noc_clicks else ():
        values[name] = metrics.clicks_to_reach(clicked.ious, threshold, settings.noc_clicks).astype(np.float64)
    return values


def _box_values(
    name: str, predicted: Bool[np.ndarray, "n h w"], targets: Bool[np.ndarray, "n h w"]
) -> dict[str, Float[np.ndarray, "n"]]:
    return {
        f"{name}_miou": metrics.iou(predicted, targets),
        f"{name}_boundary_iou": metrics.boundary_iou(predicted, targets),
    }


def _is_in_train(settings: PromptableSettings, dataset: CocoSet, entry: CocoImage) -> bool:
    """A set that does not say counts as trained on: the numbers without `_unseen` are then those of the whole set."""
    return dataset.in_train(entry) and entry.source not in settings.unseen_source


def _check_sources(settings: PromptableSettings, dataset: CocoSet) -> None:
    known = sorted({entry.source for entry in dataset.images})
    strange = [name for name in settings.unseen_source if name not in known]
    if strange:
        raise ValueError(f"unseen_source must be a source of {dataset.file} ({', '.join(known)}), got {strange[0]}")


def _time_click(model: Model, features: Features, truth: Masks) -> float:
    """What a user waits for after the first click on the first object."""
    if not len(truth):
        return float("nan")
    prompt = Prompt.point(*first_click(truth[0].masks[0]))
    return timed(lambda: predict(model, features, [prompt]))[1]
