"""Fine-tunes a promptable model (sam, mobile, sam2, pocket) on images with masks, as SAM was trained, made small.

Each step takes a few objects of a few images; half of them get a box, half a click, then up to two corrections in what
is still wrong. Where the encoder rests, its features are computed once a view and kept on disk, so that a step costs
only the small decoder. The weights that do best on the validation images are the result.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anymask.data.images import read_image
from anymask.data.pairs import Pair, Pairs, read_coco_pairs, read_pairs, read_stems, split
from anymask.evaluation import reports
from anymask.models.devices import is_out_of_memory
from anymask.models.load import load
from anymask.training.caching import FeatureStore, View, digest_of_pairs
from anymask.training.examples import Example, Examples, large_enough
from anymask.training.interaction import interact, joined, mixed_precision
from anymask.training.limits import check_counts, check_limits
from anymask.training.loop import (
    Curve,
    MovingAverage,
    StepRecord,
    load_same_run,
    means_of,
    save_checkpoint,
    told,
    trapezoid,
)
from anymask.training.scoring import Scorer
from anymask.training.trainable import as_trainable, parameters_of, parts_of
from anymask.types import Features, Report

WEIGHT_DECAY = 0.01
RESTING_VIEWS, LEARNING_VIEWS = 2, 16
# Settings that must be a number from 0 to this.
LIMITS = {"learning_rate": 1.0, "encoder_rate": 10.0, "warmup": np.inf, "decay_share": 1.0, "average": 1.0}
LIMITS |= {"cache_mb": np.inf, "val_share": 1.0, "seed": np.inf}
# What may change between the parts of a resumed run: all else makes it another run. Paths count by what is in them.
FREE = ("output", "model", "steps", "validate_every", "save_seconds", "cache_mb", "device")

_log = logging.getLogger("anymask")


@dataclass(frozen=True)
class FinetuneSettings:
    """One run. Flags of `anymask train promptable`."""

    images: Path = field(metadata={"help": "folder of the images"})
    output: Path = field(metadata={"help": "folder for checkpoint, features, curve, report and the model"})
    masks: Path | None = field(
        default=None,
        metadata={"help": "folder of their masks, paired by file stem: binary, or a value for each object"},
    )
    annotations: Path | None = field(default=None, metadata={"help": "in place of masks: a COCO instance file"})
    val_images: Path | None = field(default=None, metadata={"help": "folder of validation images"})
    val_masks: Path | None = field(default=None, metadata={"help": "folder of their masks"})
    val_annotations: Path | None = field(default=None, metadata={"help": "or their COCO instance file"})
    train_list: Path | None = field(
        default=None, metadata={"help": "text file: file stems of the images to learn from, one a line"}
    )
    val_list: Path | None = field(default=None, metadata={"help": "text file: file stems of the validation images"})
    val_share: float = field(
        default=0.1, metadata={"help": "share of the images to validate on, where nothing else says which; 0 for none"}
    )
    model: str = field(default="pocket", metadata={"help": "what to start from: a name, hub id, folder or file"})
    learn: tuple[str, ...] = field(
        default=("decoder",), metadata={"help": "decoder, prompt_encoder, encoder or all (repeat)"}
    )
    steps: int = field(default=200, metadata={"help": "optimiser steps in all"})
    batch: int = field(default=4, metadata={"help": "images a step"})
    objects: int = field(default=4, metadata={"help": "objects an image at most"})
    views: int | None = field(
        default=None,
        metadata={
            "help": "views of an image: 1 itself, 2 and its mirror image, more: and random parts"
            " (default: 2 where the encoder rests, 16 where it learns)"
        },
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "highest learning rate"})
    encoder_rate: float = field(default=0.1, metadata={"help": "learning rate of the encoder, as a share"})
    warmup: int = field(default=20, metadata={"help": "steps of rising learning rate"})
    decay_share: float = field(default=0.5, metadata={"help": "share of the steps, the last, of falling learning rate"})
    average: float = field(default=0.98, metadata={"help": "decay of the moving average of the weights, 0 for none"})
    validate_every: int = field(default=50, metadata={"help": "steps between validations"})
    save_seconds: float = field(default=60, metadata={"help": "seconds between checkpoints"})
    cache_mb: int = field(default=20000, metadata={"help": "megabytes of features on disk at most"})
    half_cache: bool = field(default=False, metadata={"help": "keep features as float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})
    seed: int = field(default=0, metadata={"help": "of everything random"})

    def __post_init__(self) -> None:
        check_counts(self, ("steps", "batch", "objects", "views", "validate_every"))
        check_limits(self, LIMITS)
        parts_of(self.learn)

    @property
    def frozen(self) -> bool:
        """Whether the encoder rests."""
        return "encoder" not in parts_of(self.learn)

    @property
    def views_used(self) -> int:
        """A view costs an encoding and disk where the encoder rests, and nothing where it learns."""
        return self.views or (RESTING_VIEWS if self.frozen else LEARNING_VIEWS)


@dataclass
class Standing:
    """Where a run is, and how good the model was before and at its best."""

    step: int = 0
    seconds: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0


def train_promptable(settings: FinetuneSettings) -> Iterator[StepRecord]:
    """Fine-tunes, or goes on where an earlier call with this output stopped; the result is in `output/model`."""
    yield from Finetuning(settings).steps()


class Finetuning:
    """A run: `remarks` say before the first step what it will do, `steps` does it, `report` says what came of it."""

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings = settings
        learned, held_out = read_data(settings)
        if not learned.rows:
            raise ValueError("no image is left to learn from: all are held out to validate on")
        self.model = as_trainable(load(settings.model, settings.device, runtime="eager"))
        self.pairs, too_small = large_enough(learned, self.model)
        self.held_out, also_small = large_enough(held_out, self.model)
        self.too_small = too_small + also_small
        rows = self.pairs.rows
        if not rows:
            raise ValueError(f"all {too_small} masks are smaller than a cell of the model's answer: crop the images")
        self.examples = Examples(rows, self.model, settings.batch, settings.objects, settings.views_used, settings.seed)
        self.scorer = Scorer(self.held_out.rows)
        self.groups = parameters_of(self.model, settings.learn)
        self.learned = nn.ParameterList(p for group in self.groups.values() for p in group).requires_grad_(True)
        self.average: MovingAverage[nn.ParameterList] = MovingAverage(self.learned, settings.average)
        self.best = [p.detach().clone() for p in self.learned]
        self.optimizer = _optimizer(self.groups, settings)
        self.store = FeatureStore(self.model, settings.output / "features", settings.cache_mb, settings.half_cache)
        self.at_once = settings.batch  # images that are learned from together: fewer where memory ends
        self.standing = Standing()
        self.identity = self._identity()
        self._resume()

    @property
    def weights(self) -> Path:
        """The folder of the fine-tuned model."""
        return self.settings.output / "model"

    @property
    def failed(self) -> dict[str, str]:
        """Files that could not be read, and why."""
        return {**self.pairs.failed, **self.held_out.failed}

    def counts(self) -> dict[str, int]:
        """How much learns, and from how much."""
        return {
            "learned_parameters": sum(p.numel() for p in self.learned),
            "all_parameters": sum(p.numel() for p in self.model.network.parameters()),
            "train_images": len(self.examples.pairs),
            "train_masks": sum(len(pair.masks) for pair in self.examples.pairs),
            "val_images": len(self.held_out),
            "val_masks": sum(len(pair.masks) for pair in self.held_out.rows),
            "failed_files": len(self.failed),
        }

    def remarks(self) -> list[str]:
        """What learns, from what, how much disk it takes, and which files were left out."""
        n = self.counts()
        lines = [
            f"{' and '.join(self.groups)} of {self.settings.model} learn:"
            f" {n['learned_parameters']:,} of {n['all_parameters']:,} parameters",
            f"{n['train_images']} images with {n['train_masks']} masks to learn from,"
            f" {n['val_images']} with {n['val_masks']} to validate on",
            *([self._disk_remark()] if self.settings.frozen else []),
        ]
        seen = {pair.image.resolve() for pair in self.pairs.rows}
        if both := sum(pair.image.resolve() in seen for pair in self.held_out.rows):
            lines.append(f"{both} of the images to validate on are learned from too: their scores say little")
        if self.too_small:
            lines.append(f"{self.too_small} masks are smaller than a cell of the model's answer: left out")
        return list(dict.fromkeys([*lines, *self.pairs.remarks(), *self.held_out.remarks()]))

    def steps(self) -> Iterator[StepRecord]:
        """One record a step; a checkpoint with each validation and by the clock, a row of the curve every 10 steps."""
        settings, at = self.settings, self.standing
        curve = Curve(settings.output / "curve.csv", at.step)
        if not at.step:
            at.before = at.best = self._validate()
            yield StepRecord(0, settings.steps, 0.0, dict(at.before))
        elif at.step >= settings.steps and self.weights.is_dir():
            return  # all was done by an earlier call, whose report stays
        recent: list[dict[str, float]] = []
        saved = time.monotonic()
        while at.step < settings.steps:
            began = time.monotonic()
            found = self._step()
            at.step += 1
            rate = settings.batch / (time.monotonic() - began)
            validates = at.step % settings.validate_every == 0 or at.step == settings.steps
            if validates:
                found |= self._compare()
            at.seconds += time.monotonic() - began
            recent.append(found)
            if at.step % 10 == 0 or validates:
                curve.add({"step": at.step, "images_per_second": round(rate, 2), **means_of(recent)})
                recent = []
            if validates or time.monotonic() - saved > settings.save_seconds:
                self._save()
                saved = time.monotonic()
            yield StepRecord(at.step, settings.steps, rate, found)
        self._finish()

    def report(self) -> Report:
        """Numbers before and after, and all that is needed to read them."""
        at, settings = self.standing, self.settings
        before = {f"{name}_before": round(value, 5) for name, value in at.before.items()}
        after = {name: round(value, 5) for name, value in at.best.items()}
        run = {"best_step": at.best_step, "step": at.step, "train_seconds": round(at.seconds, 1)}
        return Report(
            title=f"fine-tuning: {settings.model} on {settings.images}",
            metrics={**before, **after, **run, **self.counts(), "peak_rss_mb": reports.peak_rss_mb()},
            settings={key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
            seed=settings.seed,
            versions=reports.versions(),
            machine=reports.machine(),
        )

    def results(self) -> dict[str, Any]:
        """The numbers of the report, and the files that failed."""
        return {**self.report().metrics, "failed": self.failed}

    def _step(self) -> dict[str, float]:
        """One step of the optimiser; where a GPU's memory ends, again with half as many images at once."""
        settings, step = self.settings, self.standing.step
        decay = round(settings.decay_share * settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * trapezoid(step, settings.steps, settings.warmup, decay)
        examples = self.examples.of_step(step)
        while True:
            try:
                found = self._learn(examples, np.random.default_rng((settings.seed, step, 2)))
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._take_fewer(error)
        found["norm"] = float(nn.utils.clip_grad_norm_(self.learned, 1.0))
        if not np.isfinite(found["norm"]):
            raise ValueError(f"the gradients of step {step + 1} are not finite: give a smaller --learning-rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.learned, step)
        return found

    def _learn(self, examples: Sequence[Example], rng: np.random.Generator) -> dict[str, float]:
        """Gradients of the mean loss over the objects of all examples, `at_once` images at a time."""
        total = sum(len(example.targets) for example in examples)
        found: dict[str, list[float]] = {}
        for start in range(0, len(examples), self.at_once):
            part = examples[start : start + self.at_once]
            features = self._features(part)
            _set_learning(self.model.network)
            leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in features.items()}
            targets = joined([example.targets for example in part])
            for name, values in interact(self.model, leaves, targets, total, rng).items():
                found.setdefault(name, []).extend(values)
            used = [(features[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None]
            if used:
                torch.autograd.backward([feature for feature, _ in used], [grad for _, grad in used])
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _features(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Those of a frozen encoder from the store, those of a learning one made now, with gradients."""
        if self.settings.frozen:
            kept = [self.store.get(one.pair.image, one.pair.masks.size, one.view) for one in examples]
            return {name: torch.cat([features[name] for features in kept]) for name in kept[0]}
        _set_learning(self.model.network)
        looked = [(one, one.view.of(read_image(one.pair.image))) for one in examples]
        frames = [self.model.frame(image.size, one.view.crop_box) for one, image in looked]
        pixels = [self.model.preprocess(image, frame) for (_, image), frame in zip(looked, frames, strict=True)]
        with mixed_precision(self.model.device):
            features = self.model.embed(torch.stack(pixels).to(self.model.device))
        return {name: value.float() for name, value in features.items()}

    def _take_fewer(self, error: BaseException) -> None:
        if self.at_once == 1:
            raise MemoryError(
                f"{self.model.device} has too little memory to train {self.model.name} on one image at a time: give"
                " fewer --objects, --learn decoder, a smaller model or --device cpu"
            ) from error
        self.at_once = (self.at_once + 1) // 2
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        _log.warning("out of memory on the device: going on with %d images at a time", self.at_once)

    def _validate(self) -> dict[str, float]:
        """The scores of the moving average of the weights."""
        self.model.network.eval()
        with _exchanged(self.learned, self.average.model):
            return self.scorer.score(self.model, self._val_features)

    def _val_features(self, pair: Pair) -> Features:
        if not self.settings.frozen:
            return self.model.encode([read_image(pair.image)])[0]
        tensors = self.store.get(pair.image, pair.masks.size, View())
        return Features(self.model.name, self.model.frame(pair.masks.size), tensors)

    def _compare(self) -> dict[str, float]:
        """Validates and keeps the weights if they are the best so far; without validation images the last are."""
        at, scores = self.standing, self._validate()
        if not scores or sum(scores.values()) > sum(at.best.values()):
            at.best, at.best_step = scores, at.step
            self.best = [p.detach().clone() for p in self.average.model]
        return scores

    def _finish(self) -> None:
        with torch.no_grad():
            for p, best in zip(self.learned, self.best, strict=True):
                p.copy_(best)
        self.model.network.eval()
        self.model.save(self.weights)
        reports.write_report(self.settings.output / "report.json", self.report())

    def _disk_remark(self) -> str:
        first = self.examples.pairs[0]
        each = self.store.megabytes(first.image, first.masks.size)
        needed = each * (len(self.examples.pairs) * self.settings.views_used + len(self.held_out))
        limit = self.settings.cache_mb
        more = "" if needed <= limit else f", of which {limit} MB are kept (--cache-mb); the rest is encoded each time"
        return f"the encoder rests: its features take {needed:.0f} MB in {self.store.folder}{more}"

    def _save(self) -> None:
        state: dict[str, Any] = {"run": self.identity, "standing": asdict(self.standing)}
        state |= {"learned": list(self.learned), "average": list(self.average.model), "best": self.best}
        save_checkpoint(self._checkpoint, state | {"optimizer": self.optimizer.state_dict()})

    @property
    def _checkpoint(self) -> Path:
        return self.settings.output / "checkpoint.pt"

    def _resume(self) -> None:
        state = load_same_run(self._checkpoint, self.identity)
        if state is None:
            return
        with torch.no_grad():
            for mine, kept in ((self.learned, "learned"), (self.average.model, "average"), (self.best, "best")):
                for tensor, value in zip(mine, state[kept], strict=True):
                    tensor.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.standing = Standing(**state["standing"])

    def _identity(self) -> dict[str, str]:
        return {
            "model": self.store.weights,
            "training data": digest_of_pairs(self.examples.pairs),
            "validation data": digest_of_pairs(self.held_out.rows),
            **told(self.settings, FREE),
        }


def read_data(settings: FinetuneSettings) -> tuple[Pairs, Pairs]:
    """Pairs to learn from and to validate on: from folders or files of their own, from lists, or a share."""
    learned = _read(settings.images, settings.masks, settings.annotations, settings.train_list)
    if settings.val_images or settings.val_masks or settings.val_annotations:
        folder = settings.val_images or settings.images
        return learned, _read(folder, settings.val_masks, settings.val_annotations, settings.val_list)
    if settings.val_list is not None:
        held = _read(settings.images, settings.masks, settings.annotations, settings.val_list)
        if settings.train_list is not None:
            return learned, held
        kept = {pair.image for pair in held.rows}
        return replace(learned, rows=tuple(pair for pair in learned.rows if pair.image not in kept)), held
    return split(learned, settings.val_share, settings.seed)


def _read(images: Path, masks: Path | None, annotations: Path | None, stems: Path | None) -> Pairs:
    names = None if stems is None else read_stems(stems)
    if masks is not None and annotations is None:
        return read_pairs(images, masks, names)
    if annotations is not None and masks is None:
        return read_coco_pairs(images, annotations, names)
    raise ValueError(f"give the masks of the images in {images} once: as a folder of masks or as a COCO file")


def _optimizer(groups: Mapping[str, Sequence[nn.Parameter]], settings: FinetuneSettings) -> torch.optim.AdamW:
    """Matrices and kernels decay, vectors do not; the encoder learns more slowly."""
    rows: list[dict[str, Any]] = []
    for part, parameters in groups.items():
        rate = settings.learning_rate * (settings.encoder_rate if part == "encoder" else 1.0)
        for decayed in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decayed]
            rows.append({"params": chosen, "weight_decay": WEIGHT_DECAY if decayed else 0.0, "highest": rate})
    return torch.optim.AdamW([row for row in rows if row["params"]], lr=settings.learning_rate)


def _set_learning(network: nn.Module) -> None:
    """Training mode with the statistics of batch norms as they are and without dropout.

    In training mode SAM 2 gives its single mask also where it is unstable, so that it learns.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            module.eval()


@contextmanager
def _exchanged(learned: Iterable[nn.Parameter], others: Iterable[Tensor]) -> Iterator[None]:
    """The model with other weights, for a while."""
    own = [p.data for p in learned]
    for p, other in zip(learned, others, strict=True):
        p.data = other.data
    try:
        yield
    finally:
        for p, mine in zip(learned, own, strict=True):
            p.data = mine
