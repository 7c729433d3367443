"""The case study: teach each class by several seeds, judge on held-out images, beside controls and other classes.

An embedding is the one that does best on val, so that the numbers on val flatter it a little; `spare` judges on images
that nothing was chosen by, once, when all tuning is done.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anymask.adapting.beginnings import best_phrase
from anymask.adapting.classes import ClassFolder, read_class
from anymask.adapting.controls import Embedding, judge_controls, judged, mean_embedding
from anymask.adapting.inversion import Inversion
from anymask.adapting.judging import Gallery
from anymask.adapting.lessons import Lessons
from anymask.adapting.records import evenly_ranked, save_figure, write_run
from anymask.adapting.settings import InversionSettings
from anymask.adapting.study_figures import Example, draw_examples, draw_study
from anymask.adapting.study_settings import LEARNING, StudyClass, StudySettings
from anymask.adapting.study_summary import ClassResult, readable, summarise
from anymask.data.files import write_whole
from anymask.data.images import read_image
from anymask.data.pairs import Pair, Pairs
from anymask.evaluation import reports
from anymask.models.load import load
from anymask.models.word_space import word_space_of
from anymask.training.caching import FeatureStore
from anymask.types import Masks, Report

VAL = "Each embedding is the one that did best on these images: on others it will do a little worse (--spare)."
SPARE = "Nothing was chosen by these images."
DRAWN = "The examples are evenly spaced from the best to the worst IoU of the first run's embedding."
EXAMPLES = 5  # held-out images drawn of each class
TABLES = ("classes", "controls", "confusion", "presence", "phrases")


@dataclass(frozen=True)
class StudyRecord:
    """How far a study is: parts are the runs of all classes, then the judging of each."""

    done: float
    total: int
    text: str


class Study:
    """`remarks` say what there is to learn from, `steps` does it all and writes the files; then `report` is there.

    What was taught before in the same folder is read back, and a half run goes on.
    """

    report: Report

    def __init__(self, settings: StudySettings, classes: Sequence[StudyClass], learning: InversionSettings) -> None:
        _check_names(classes)
        self.settings, self.classes, self.learning = settings, classes, learning
        self._diverged = False
        self.model = load(settings.model, settings.device, runtime="eager")
        self.space = word_space_of(self.model)
        for phrase in (phrase for one in classes for phrase in one.tried):
            self.space.vectors(phrase)  # raises for what the model cannot read, before any work
        sets = settings.output / "sets"
        self.folders: Mapping[str, ClassFolder] = {
            one.name: read_class(one.name, one.place, settings.max_train, settings.max_val, settings.seed, sets)
            for one in classes
        }
        self.store = FeatureStore(
            self.space.model,
            settings.output / "features",
            learning.cache_mb,
            learning.half_cache,
            self.space.feature_names,
        )
        self.held_out = {name: self._gallery(self._held_out(name)) for name in self.folders}

    @property
    def failed(self) -> bool:
        """Whether an image or mask could not be used, or a run met a loss that was not finite."""
        return self._diverged or any(folder.failed for folder in self.folders.values())

    def remarks(self) -> list[str]:
        """How many images there are of each class, and what was left out."""
        lines = []
        for name, folder in self.folders.items():
            n, kind = len(folder.train), "spare" if self.settings.spare else "held out"
            about = f"{n} image{'s' * (n != 1)} to learn from, {len(self.held_out[name])} {kind}"
            lines += [f"{name}: {about}", *folder.remarks()]
        return lines

    @property
    def told(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        places = {
            one.name: {"place": one.place, "seed_phrase": one.seed_phrase, "phrases": one.tried} for one in self.classes
        }
        learning = {name: getattr(self.learning, name) for name in LEARNING}
        return {"classes": places, **reports.plain(self.settings), **learning}

    def steps(self) -> Iterator[StudyRecord]:
        """A record for each step of teaching, and for each class judged."""
        taught: dict[str, list[Embedding]] = {one.name: [] for one in self.classes}
        for one in self.classes:
            for run in range(self.settings.runs):
                done = sum(map(len, taught.values()))
                taught[one.name].append((yield from self._teach(one, run, done)))
        results = list[ClassResult]()
        for one in self.classes:
            yield StudyRecord(len(taught) * self.settings.runs + len(results), self._parts, f"judging {one.name}")
            results.append(self._judge(one, taught))
        part = "spare" if self.settings.spare else "held-out"
        title = f"teach study: {self.model.name}, {part} images of {', '.join(taught)}"
        self.report = summarise(results, title, self.told, self.settings.seed)
        self._write(results, taught)
        yield StudyRecord(self._parts, self._parts, "done")

    @property
    def _parts(self) -> int:
        return len(self.classes) * (self.settings.runs + 1)

    def _teach(self, one: StudyClass, run: int, done: int) -> Generator[StudyRecord, None, Embedding]:
        """One run of a class, or what is left of it, with all files of `teach concept`."""
        seed = self.settings.seed + run
        folder = self.settings.output / one.name / f"seed-{seed}"
        settings = replace(
            self.learning,
            seed_text=one.seed_phrase,
            name=one.name,
            output=folder,
            model=self.settings.model,
            device=self.settings.device,
            seed=seed,
        )
        inversion = Inversion(settings, self._lessons(one.name), self.model, self.store)
        learned_now = False
        for record in inversion.steps():
            learned_now = True
            yield StudyRecord(done + record.step / record.steps, self._parts, f"{one.name} by seed {seed}")
        self._diverged |= inversion.standing.diverged
        if learned_now or not (folder / "concept.safetensors").is_file():
            write_run(inversion, inversion.judge(inversion.best))
        learned = self.space.vectors_of(inversion.concept)
        return Embedding(inversion.beginning, learned)

    def _lessons(self, name: str) -> Lessons:
        folder = self.folders[name]
        others = [pair for other, its in self.folders.items() if other != name for pair in its.train.rows]
        without = (
            tuple(Pair(pair.image, Masks.empty(pair.masks.size)) for pair in others) if self.settings.contrast else ()
        )
        return Lessons(folder.train, folder.val, without)

    def _judge(self, one: StudyClass, taught: Mapping[str, Sequence[Embedding]]) -> ClassResult:
        held_out, learn = self.held_out[one.name], self._gallery(self.folders[one.name].train)
        best, phrases = best_phrase(learn, one.tried)
        mine = taught[one.name]
        means = [mean_embedding([each[run].end for each in taught.values()]) for run in range(len(mine))]
        others = means if len(taught) > 1 else []
        settings = self.settings
        return ClassResult(
            name=one.name,
            seed_phrase=one.seed_phrase,
            best_phrase=best,
            phrases=phrases,
            train=judged(learn, [each.end for each in mine]),
            controls=judge_controls(held_out, one.seed_phrase, best, mine, others, settings.draws, settings.seed),
            embeddings={name: judged(held_out, [each.end for each in runs]) for name, runs in taught.items()},
            seed_phrases={
                other.name: judged(held_out, [self.space.vectors(other.seed_phrase)]) for other in self.classes
            },
        )

    def _held_out(self, name: str) -> Pairs:
        folder = self.folders[name]
        if not self.settings.spare:
            return folder.val
        if folder.spare is None:
            raise ValueError(
                f"the class {name!r} has no spare images: write spare.txt, or judge on val without --spare"
            )
        return folder.spare

    def _gallery(self, pairs: Pairs) -> Gallery:
        return Gallery(self.space, pairs.rows, self.store)

    def _write(self, results: Sequence[ClassResult], taught: Mapping[str, Sequence[Embedding]]) -> None:
        output, stem = self.settings.output, self.settings.stem
        reports.write_report(output / f"{stem}.json", self.report)
        with write_whole(output / f"{stem}.md") as temporary:
            temporary.write_text(to_markdown(self.report), encoding="utf-8")
        save_figure(output / f"{stem}.png", draw_study(self.report))
        examples = {one.name: self._examples(one, taught[one.name][0].end) for one in results}
        save_figure(output / ("examples_spare.png" if self.settings.spare else "examples.png"), draw_examples(examples))

    def _examples(self, one: ClassResult, learned: Float[Tensor, "n d"]) -> list[Example]:
        """Of the first run, evenly spaced in the rank of IoU, the best first."""
        gallery, seed = self.held_out[one.name], self.space.vectors(one.seed_phrase)
        ious, before = one.end.ious[0], one.seed_phrases[one.name].ious[0]
        return [
            Example(
                read_image(gallery.pairs[row].image),
                gallery.truth(row),
                gallery.mask(row, seed),
                gallery.mask(row, learned),
                float(before[row]),
                float(ious[row]),
            )
            for row in evenly_ranked(ious, EXAMPLES)
        ]


def to_markdown(report: Report) -> str:
    """The tables of a study under their headings."""
    tables, about = readable(report).tables, SPARE if report.settings["spare"] else VAL
    shown = [f"## {name.capitalize()}\n\n{reports.piped(rows)}" for name in TABLES if (rows := tables[name])]
    return "\n\n".join([f"# {report.title}", f"{about} {DRAWN}", *shown, reports.origin(report)]) + "\n"


def _check_names(classes: Sequence[StudyClass]) -> None:
    if not classes:
        raise ValueError("a study needs a class: give NAME=DIR, once for each")
    names = [one.name for one in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"every class must have a name of its own, got {twice[0]!r} twice")
