"""Fits to a user's labelled pictures what stands between names and masks: scorer, quality, thresholds of names.

Each image is measured once (`measurements.py`), into a file that an interrupted run goes on from. From what was
measured the weights (`quality_fit.py`) and thresholds (`name_thresholds.py`) are fitted twice: without a share of the
images, on which the report compares before and after, and with all of them, which is what is kept.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from anymask.data.coco import UNNAMED, CocoImage, CocoSet, read_coco
from anymask.data.concepts import save_concept
from anymask.data.files import sha256_of, write_whole_folder
from anymask.data.journals import Journal
from anymask.data.scorers import FittedScorer, write_scorer
from anymask.evaluation import reports
from anymask.evaluation.labelled import read_entry
from anymask.evaluation.naming import all_named, draw_absent_names, present_names
from anymask.grounding.loading import POCKET, WINDOWS, load_grounding
from anymask.grounding.pipeline import Grounding
from anymask.grounding.pocket_scorer import PocketScorer
from anymask.grounding.protocol import Detector, Scorer
from anymask.grounding.score import EnsembleScorer
from anymask.models.digests import digest_of_model, digest_of_weights
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.ops.sampling import stratified
from anymask.training.measurements import Measured, Question, measure, measured_of, members_of
from anymask.training.scorer_fit import Fit, Usual, compare, file_stem, fit
from anymask.types import Concept, Report

MEASURED = "measured.jsonl"
NAMED = 8  # names in a note

_log = logging.getLogger("anymask")


@dataclass(frozen=True)
class ScorerSettings:
    """What to learn from, for which model, detector and scorer."""

    images: Path = field(metadata={"help": "folder of the pictures"})
    annotations: Path = field(metadata={"help": "COCO instance file of these pictures, with names"})
    output: Path = field(metadata={"help": "folder for scorer.json, concepts/ and what was measured"})
    model: str = field(default="pocket", metadata={"help": "catalogue name, hub id, folder or file of a model"})
    detector: str | None = field(
        default=None,
        metadata={"help": "learn its thresholds too: a detector, or windows (default: for models without text alone)"},
    )
    scorer: tuple[str, ...] = field(
        default=(), metadata={"help": "member as ViT-L-14:openai=0.25 (repeat), or pocket (default: what is here)"}
    )
    exhaustive: bool = field(
        default=False, metadata={"help": "the file names all that is there: other names of it are not in an image"}
    )
    objects: int = field(default=8, metadata={"help": "objects an image whose candidates are looked at, at most"})
    absent: int = field(default=20, metadata={"help": "names an image that are not there, as far as the file has them"})
    limit: int | None = field(default=None, metadata={"help": "take this many images, stratified by source"})
    val_share: float = field(default=0.25, metadata={"help": "share of the images to compare before and after on"})
    seed: int = field(default=0, metadata={"help": "of everything random"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or mps"})

    def __post_init__(self) -> None:
        for name in ("objects", "absent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be at least 0 and below 1, got {self.val_share:g}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class ScorerRecord:
    """One image was measured, or could not be; `done` of `total` are."""

    file_name: str
    done: int
    total: int


class ScorerFitting:
    """A run: `images` measures what is not measured yet, `finish` fits and writes. `failed` are files, and why."""

    def __init__(self, settings: ScorerSettings) -> None:
        """Loads everything and checks it, and writes nothing. Raises ValueError or FileNotFoundError."""
        self.settings, self.failed = settings, dict[str, str]()
        if settings.output.exists() and not settings.output.is_dir():
            raise ValueError(f"-o must be a folder, got the file {settings.output}")
        self.dataset, self.entries = read_named_set(settings)
        self.model: Model = load(settings.model, settings.device)
        self.detects = settings.detector is not None or not self.model.capabilities.text
        asked = settings.detector if self.detects else WINDOWS
        self.grounding: Grounding = load_grounding(
            asked, scorer=settings.scorer, model=self.model, device=settings.device
        )
        self.scores: Scorer = self.grounding.scorer or PocketScorer(load(POCKET, settings.device), self.grounding.cache)
        self.grounding = replace(self.grounding, scorer=self.scores)
        self.members = tuple(members_of(self.scores))
        self.journal = Journal(settings.output / MEASURED, self._identity())
        self.journal.read()  # refuses one of another run before anything is written

    @property
    def scorer(self) -> Path:
        """The file of what is learned."""
        return self.settings.output / "scorer.json"

    @property
    def concepts(self) -> Path:
        """The folder of the names' thresholds."""
        return self.settings.output / "concepts"

    def remarks(self) -> list[str]:
        """What learns, from what."""
        whose = " and ".join(self._whose)
        return [f"{len(self.entries)} images, scored by {self.scores.name}; thresholds are for {whose}"]

    def images(self) -> Iterator[ScorerRecord]:
        """Measures image by image; every one is on the disk before its record comes. Unreadable ones are named."""
        done = {row["file_name"] for row in self.journal.start()}
        for count, entry in enumerate(self.entries, start=1):
            if entry.file_name in done:
                continue
            if found := self._measured(entry):
                self.journal.add(asdict(found))
            yield ScorerRecord(entry.file_name, count, len(self.entries))

    def finish(self) -> FittedScorer:
        """Fits to what was measured, and writes `scorer.json` and the concepts."""
        wanted = {entry.file_name for entry in self.entries}
        measured = [measured_of(row) for row in self.journal.read() if row["file_name"] in wanted]
        if not measured:
            file, reason = next(iter(self.failed.items()))
            raise ValueError(f"none of {len(self.entries)} images could be read: {file}: {reason}")
        measured.sort(key=lambda one: one.file_name)
        learned, held_out = _split(measured, self.settings.val_share, self.settings.seed)
        whole, usual = fit(measured, self._usual), self._usual
        metrics, notes = compare(fit(learned, usual), held_out, usual)
        fitted = self._fitted(whole, metrics, notes, len(learned), len(held_out))
        self._save_concepts(whole)
        write_scorer(self.scorer, fitted)
        return fitted

    def _measured(self, entry: CocoImage) -> Measured | None:
        try:
            image = read_entry(self.dataset, entry)
            question = self._question(entry)
        except (ValueError, OSError) as error:
            self.failed[entry.file_name] = " ".join(str(error).split())
            _log.warning("%s is left out: %s", entry.file_name, error)
            return None
        return measure(self.model, self.grounding, image, question, entry.file_name, self.detects)

    def _question(self, entry: CocoImage) -> Question:
        truth = self.dataset.masks(entry)
        truth = truth[(truth.areas > 0) & np.asarray([label not in (UNNAMED, "") for label in truth.labels], bool)]
        present, rng = present_names(truth), np.random.default_rng((self.settings.seed, entry.id))
        drawn = np.sort(rng.choice(len(truth), min(len(truth), self.settings.objects), replace=False))
        crowded = {*self.dataset.crowds(entry).labels, *entry.extra.get("crowd_categories", ())}
        exhaustive = self.dataset.sources.get(entry.source, {}).get("text_exhaustive", False)
        return Question(
            truth=truth,
            drawn=truth[drawn],
            names=[*present, *draw_absent_names(self.dataset, entry, rng)],
            absent=draw_absent_names(self.dataset, entry, rng, self.settings.absent),
            certain=[name for name in present if exhaustive and name not in crowded],
            rng=rng,
        )

    @property
    def _whose(self) -> list[str]:
        """Whose scores the thresholds are for."""
        names = [self.model.name] if self.model.capabilities.text else []
        return [*names, *([self.grounding.detector.name] if self.detects else [])]

    @property
    def _usual(self) -> Usual:
        thresholds = {self.model.name: self.model.capabilities.thresholds.presence}
        if self.detects:
            thresholds[self.grounding.detector.name] = self.grounding.detector.thresholds.box
        weights = getattr(self.scores, "weights", np.ones(1))
        floors = {self.grounding.detector.name} if self.detects else set()
        return Usual(
            self.members, np.asarray(weights, np.float64), {name: thresholds[name] for name in self._whose}, floors
        )

    def _fitted(
        self, whole: Fit, metrics: dict[str, float | int | None], notes: Sequence[str], learned: int, held_out: int
    ) -> FittedScorer:
        counts = {"images": learned + held_out, "images_held_out": held_out, "failed_files": len(self.failed)}
        report = Report(
            title=f"scorer {self.scores.name} and thresholds of {' and '.join(self._whose)}",
            metrics={**metrics, **counts, "names_learned": len(whole.by_name()), "peak_rss_mb": reports.peak_rss_mb()},
            settings=reports.plain(self.settings),
            tables={"weights": whole.rows(self._usual), "names": [asdict(row) for row in whole.names]},
            seed=self.settings.seed,
            versions=reports.versions(),
            machine=reports.machine(),
        )
        told = [*self._notes(whole), *notes]
        about = {**reports.to_json(report), "notes": told, "failed": self.failed}
        return FittedScorer(
            quality=None if whole.quality is None else whole.weights,
            best_size=None if whole.quality is None else whole.quality.best_size,
            members=whole.member_weights(self._usual) if len(self.members) > 1 else {},
            thresholds=whole.thresholds(self._whose),
            of_all=whole.of_all,
            report=about,
        )

    def _notes(self, whole: Fit) -> list[str]:
        notes = list(self.grounding.notes)
        if len(self.members) == 1:
            notes.append(f"{self.members[0]} is the only member of the scorer: there is nothing to weigh")
        elif self.detects and self.grounding.detector.name.startswith(WINDOWS):
            notes.append(
                "the windows were scored with the members' weights before the fit: fit once more with"
                " --scorer NAME=WEIGHT of the fitted ones"
            )
        if whole.quality is None:
            notes.append(f"{self.model.name} left no box a choice of masks: quality keeps its weights")
        kept = [row for row in whole.names if row.value is None]
        for lacking in ("positives", "negatives"):
            names = list(dict.fromkeys(row.name for row in kept if f"has no {lacking}" in row.note))
            if names:
                shown = ", ".join(names[:NAMED]) + (" and others" if len(names) > NAMED else "")
                notes.append(f"{len(names)} names have no {lacking} and get the best threshold of all names: {shown}")
        if not any(row.negatives for row in whole.names):
            notes.append(
                "no image says for certain what is not in it: all names keep the usual threshold; if the file names"
                " everything that is there, say so with --exhaustive"
            )
        return notes

    def _save_concepts(self, whole: Fit) -> None:
        """A file for each name with a threshold; what else lies in the folder stays."""
        with write_whole_folder(self.concepts) as folder:
            for name, rows in whole.by_name().items():
                concept = Concept(
                    name=name,
                    base_model=self.model.name,
                    made_by={"command": "anymask train scorer", **reports.plain(self.settings)},
                    quality={f"f1 of {row.whose}": row.f1_after for row in rows if row.f1_after is not None},
                    thresholds={row.whose: row.value for row in rows if row.value is not None},
                )
                save_concept(concept, folder / f"{file_stem(name)}.safetensors")

    def _identity(self) -> dict[str, str]:
        """All that what is measured on an image depends on."""
        kept = ("exhaustive", "objects", "absent", "seed")
        model = _identity_of(self.model)
        same = isinstance(self.scores, PocketScorer) and self.scores.model is self.model
        return {
            "model": model,
            "detector": _identity_of_detector(self.grounding.detector) if self.detects else "",
            "scorer": model if same else _identity_of_scorer(self.scores),
            "annotations": sha256_of(self.settings.annotations),
            **{name: str(getattr(self.settings, name)) for name in kept},
        }


def _identity_of(model: Model) -> str:
    return digest_of_model(model) if isinstance(model, PromptableModel) else model.name


def _identity_of_detector(detector: Detector) -> str:
    """Its name with a digest of its weights; windows have none but those of the scorer."""
    network = getattr(detector, "network", None)
    return f"{detector.name} {digest_of_weights(network)}" if isinstance(network, nn.Module) else detector.name


def _identity_of_scorer(scorer: Scorer) -> str:
    """The files of its members and how much each counts, which decides what windows find."""
    if isinstance(scorer, EnsembleScorer):
        return " + ".join(f"{one.member.name}={one.member.weight:g} {one.digest}" for one in scorer.models)
    return _identity_of(scorer.model) if isinstance(scorer, PocketScorer) else scorer.name


def read_named_set(settings: ScorerSettings) -> tuple[CocoSet, list[CocoImage]]:
    """The set and the images of it to learn from. Raises ValueError for one without images or names."""
    dataset = read_coco(settings.annotations, settings.images)
    if not len(dataset):
        raise ValueError(f"{settings.annotations} must hold at least one image, got none")
    dataset = all_named(dataset) if settings.exhaustive else dataset
    sources = [entry.source for entry in dataset.images]
    entries = [dataset.images[row] for row in stratified(sources, settings.limit, settings.seed)]
    used = {row["category_id"] for entry in entries for row in dataset.annotations.get(entry.id, ())}
    if not {dataset.categories[one] for one in used} - {UNNAMED, ""}:
        raise ValueError(f"{settings.annotations} names nothing in {len(entries)} images: a scorer learns from names")
    return dataset, entries


def _split(measured: Sequence[Measured], share: float, seed: int) -> tuple[list[Measured], list[Measured]]:
    """Those to learn from, and those held out; one at least is learned from."""
    order = np.random.default_rng(seed).permutation(len(measured))
    held = set(order[: min(round(share * len(measured)), len(measured) - 1)].tolist())
    return [one for i, one in enumerate(measured) if i not in held], [measured[i] for i in sorted(held)]
