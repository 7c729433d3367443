"""The settings of a textual inversion: flags of `anymask teach concept`. No PyTorch: help is there at once."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anymask.training.limits import check_counts, check_limits

OPTIMIZERS = ("adamw", "adam")
MATCHES = ("best", "top", "soft", "all")
# Settings that must be a number from 0 to this.
LIMITS = {"learning_rate": 10.0, "weight_decay": 1.0, "clip_norm": np.inf, "norm_weight": np.inf, "warmup": np.inf}
LIMITS |= {"mask_weight": np.inf, "score_weight": np.inf, "box_weight": np.inf, "val_share": 1.0, "cache_mb": np.inf}
LIMITS |= {"seed": np.inf, "patience": np.inf}


@dataclass(frozen=True)
class Objective:
    """Weights, and which queries answer for an object.

    `match`: "best" is the query whose mask has the best IoU with it, "top" the `top` best, "soft" all queries by a
    soft-min of their mask loss, "all" one query each by the Hungarian method, so that no two objects share one.
    """

    mask: float = 5.0
    score: float = 2.0
    box: float = 1.0
    match: str = "best"
    top: int = 3
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"match must be {', '.join(MATCHES)}, got {self.match!r}")
        if self.top < 1 or not self.temperature > 0:
            raise ValueError(f"top must be at least 1 and the temperature above 0, got {self.top}, {self.temperature}")


@dataclass(frozen=True)
class InversionSettings:
    """One run: from what a phrase is learned, where it begins, and how it learns."""

    seed_text: str = field(
        default="object",
        metadata={
            "help": "the phrase that comes nearest: what it begins with and is named by, if nothing else is said"
        },
    )
    output: Path = field(
        default=Path("run"), metadata={"help": "folder for the concept, history, figures, settings and checkpoint"}
    )
    image: Path | None = field(default=None, metadata={"help": "one image to learn from"})
    mask: Path | None = field(
        default=None, metadata={"help": "its mask: white on the object, or a value for each object"}
    )
    images: Path | None = field(default=None, metadata={"help": "or a folder of images"})
    masks: Path | None = field(default=None, metadata={"help": "folder of their masks, paired by file stem"})
    annotations: Path | None = field(default=None, metadata={"help": "in place of masks: a COCO instance file"})
    category: str | None = field(default=None, metadata={"help": "the category of the COCO file to learn"})
    val_images: Path | None = field(default=None, metadata={"help": "folder of images held out to judge by"})
    val_masks: Path | None = field(default=None, metadata={"help": "folder of their masks"})
    train_list: Path | None = field(
        default=None, metadata={"help": "text file: file stems of the images to learn from, one a line"}
    )
    val_list: Path | None = field(default=None, metadata={"help": "text file: file stems of the images held out"})
    val_share: float = field(default=0.2, metadata={"help": "share held out, where nothing else says which; 0: none"})
    negatives: Path | None = field(default=None, metadata={"help": "folder of images without the thing"})
    name: str | None = field(default=None, metadata={"help": "name of the concept (default: the seed text)"})
    model: str = field(default="pocket", metadata={"help": "a model that knows names: a name, hub id, folder or file"})
    start: str | None = field(
        default=None,
        metadata={
            "help": "where to begin: another phrase, noise, nearest (the best --phrase), or a concept's file"
            " (default: the seed text)"
        },
    )
    phrase: tuple[str, ...] = field(default=(), metadata={"help": "a phrase that --start nearest may choose (repeat)"})
    tokens: int | None = field(
        default=None, metadata={"help": "learned vectors (default: as many as the phrase has word pieces)"}
    )
    steps: int = field(default=200, metadata={"help": "optimiser steps in all"})
    batch_size: int = field(default=8, metadata={"help": "images a step; half as many without the thing join them"})
    at_once: int | None = field(
        default=None, metadata={"help": "images on the device at once (default: 8, of models of many queries 1)"}
    )
    views: int | None = field(
        default=None,
        metadata={
            "help": "views of an image: 1 itself, 2 and its mirror image, more: and random parts (default: 2, of a"
            " lone image 1)"
        },
    )
    learning_rate: float = field(default=0.02, metadata={"help": "highest learning rate"})
    optimizer: str = field(default="adamw", metadata={"help": "adamw or adam"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of the vectors"})
    warmup: int = field(default=10, metadata={"help": "steps of rising learning rate, before it falls as a cosine"})
    clip_norm: float = field(default=1.0, metadata={"help": "longest gradient; 0: any"})
    norm_weight: float = field(
        default=0.0, metadata={"help": "weight of what holds the vectors' norms to those of the word table"}
    )
    mask_weight: float = field(default=5.0, metadata={"help": "weight of BCE + Dice of the mask"})
    score_weight: float = field(default=2.0, metadata={"help": "weight of BCE of the score"})
    box_weight: float = field(default=1.0, metadata={"help": "weight of L1 + GIoU of the box"})
    match: str = field(
        default="best",
        metadata={"help": "queries that answer for an object: best, top, soft (soft-min) or all (Hungarian)"},
    )
    top: int = field(default=3, metadata={"help": "how many, for --match top"})
    validate_every: int = field(default=20, metadata={"help": "steps between judgements at full size"})
    patience: int = field(default=5, metadata={"help": "judgements without gain before it stops; 0: goes to the end"})
    save_seconds: float = field(default=5, metadata={"help": "seconds between checkpoints"})
    cache_mb: int = field(default=20000, metadata={"help": "megabytes of features on disk at most"})
    half_cache: bool = field(default=False, metadata={"help": "keep features as float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})
    seed: int = field(default=0, metadata={"help": "of everything random"})

    def __post_init__(self) -> None:
        for what, text in (("seed text", self.seed_text), ("name", self.title)):
            if not text.strip() or set(text) & set("<>"):
                raise ValueError(f"the {what} must be words, without < and >, got {text!r}")
        check_counts(self, ("steps", "batch_size", "at_once", "views", "validate_every", "tokens"))
        check_limits(self, LIMITS)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be {' or '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if bool(self.phrase) != (self.start == "nearest"):
            raise ValueError("--start nearest chooses among phrases: give it with one --phrase or more, and only then")
        self.objective  # noqa: B018 - raises for what it cannot be

    @property
    def objective(self) -> Objective:
        """What the phrase is judged by."""
        return Objective(self.mask_weight, self.score_weight, self.box_weight, self.match, self.top)

    @property
    def title(self) -> str:
        """What the concept is called."""
        return self.seed_text if self.name is None else self.name
