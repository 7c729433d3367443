"""What a case study is made of: its classes, and settings that are flags of `anymask teach study`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

# Where the user names no phrases: what one would try who has no better word. With the seed phrase they are ten.
GENERIC_PHRASES = ("object", "thing", "animal", "person", "plant", "food", "hidden object", "round shape", "foreground")
# Of the settings of an inversion, those that a study takes over as they are; all else it says itself, class by class.
LEARNING = (
    *("tokens", "steps", "batch_size", "at_once", "views", "learning_rate", "optimizer", "weight_decay", "warmup"),
    *("clip_norm", "norm_weight", "mask_weight", "score_weight", "box_weight", "match", "top", "validate_every"),
    *("patience", "save_seconds", "cache_mb", "half_cache"),
)
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class StudySettings:
    """What is studied, and on what it is judged; how a class is taught is in `InversionSettings`."""

    output: Path = field(metadata={"help": "folder for the embeddings, study.json, study.md and the figures"})
    model: str = field(default="pocket", metadata={"help": "a model that knows names: a name, hub id, folder or file"})
    max_train: int = field(default=50, metadata={"help": "images of a class to learn from at most"})
    max_val: int = field(default=20, metadata={"help": "images of a class to choose and judge by at most"})
    runs: int = field(default=1, metadata={"help": "times that each class is taught, each by a seed of its own"})
    draws: int = field(default=3, metadata={"help": "times that the control of random vectors is drawn"})
    contrast: bool = field(
        default=True, metadata={"help": "learn from the other classes' images too, as images without the class"}
    )
    spare: bool = field(
        default=False, metadata={"help": "judge on the images of spare.txt, once all is tuned on those of val.txt"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})
    seed: int = field(default=0, metadata={"help": "of the first run, of splits and of random vectors"})

    def __post_init__(self) -> None:
        for name in ("max_train", "max_val", "runs", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def stem(self) -> str:
        """What the files of the results are called."""
        return "study_spare" if self.spare else "study"


@dataclass(frozen=True)
class StudyClass:
    """A class to be studied: its folder or known set, the phrase it begins with, and plain phrases to beat.

    Without phrases the generic ones are tried; without a seed phrase its name is.
    """

    name: str
    place: str
    seed_text: str = ""
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the name of a class must be letters, digits, _ and - alone, got {self.name!r}")

    @property
    def seed_phrase(self) -> str:
        """The phrase that it begins with."""
        return self.seed_text or re.sub("[_-]+", " ", self.name).strip()

    @property
    def tried(self) -> tuple[str, ...]:
        """The plain phrases; the seed phrase is always one of them."""
        return tuple(dict.fromkeys((self.seed_phrase, *(self.phrases or GENERIC_PHRASES))))
