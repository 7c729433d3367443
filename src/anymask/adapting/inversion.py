"""Textual inversion for segmentation: a phrase of learned vectors that makes a frozen model find what masks show.

The vectors enter before the text transformer, where those of words would stand (Gal et al. 2022, section 3); encoder,
text transformer, fusion and decoder rest, and what the encoder says of an image is computed once and kept. So a step
costs little more than the text transformer and the decoder, forward and backward.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from anymask.adapting.beginnings import begin, best_phrase
from anymask.adapting.judging import Gallery, Judgement, mean_iou, stacked
from anymask.adapting.lessons import Lessons, read_lessons
from anymask.adapting.objective import Lesson, Wanted, judge_image
from anymask.adapting.settings import InversionSettings
from anymask.adapting.wording import nearest_pieces
from anymask.data.pairs import Pair
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.models.word_space import LEVEL, WordSpace, word_space_of
from anymask.training.caching import FeatureStore, digest_of_pairs
from anymask.training.examples import Example, Examples, large_enough
from anymask.training.interaction import mixed_precision
from anymask.training.loop import StepRecord, cosine, load_same_run, save_checkpoint, told
from anymask.types import Concept

HELD_MB = 1500.0  # features kept in memory
MOST_OBJECTS = 100  # of an image that are learned from in one step
# What may change between the parts of a resumed run: all else makes it another run. Paths count by what is in them.
FREE = ("output", "model", "at_once", "save_seconds", "cache_mb", "device")

_log = logging.getLogger("anymask")


@dataclass
class Standing:
    """Where a run is, what it began with and what was best; `history` has a row a step."""

    step: int = 0
    seconds: float = 0.0
    start: str = ""
    before: float = 0.0
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    stopped: str = ""
    diverged: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    nearest: list[str] = field(default_factory=list)


class Inversion:
    """A run: `remarks` say before the first step what it will do, `steps` does it; then `concept` is what was learned.

    `lessons` and `model` are read as the settings say, unless they are given.
    """

    def __init__(
        self,
        settings: InversionSettings,
        lessons: Lessons | None = None,
        model: Model | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.settings = settings
        self.lessons = lessons or read_lessons(settings)
        self.space: WordSpace = word_space_of(model or load(settings.model, settings.device, runtime="eager"))
        self.model: PromptableModel = self.space.model
        learn, too_small = large_enough(self.lessons.learn, self.model)
        held_out, also_small = large_enough(self.lessons.held_out, self.model)
        self.too_small, rows = too_small + also_small, learn.rows
        if not rows:
            raise ValueError("all masks are smaller than a cell of the model's answer: crop the images")
        self.lessons = Lessons(learn, held_out, self.lessons.without)
        store = store or FeatureStore(
            self.model, settings.output / "features", settings.cache_mb, settings.half_cache, self.space.feature_names
        )
        self.learn = Gallery(self.space, rows, store)
        self.held_out = Gallery(self.space, held_out.rows, store)
        self.examples = self._examples(rows, settings.batch_size)
        self.without = self._examples(self.lessons.without, max(1, settings.batch_size // 2))
        held = max(1, int(HELD_MB / store.megabytes(rows[0].image, rows[0].masks.size)))
        self._features = lru_cache(maxsize=held)(lambda *view: self.space.prepare(store.get(*view)))
        self.standing, self.saved_step = Standing(), 0
        self.beginning = self._begin()
        self.best = self.beginning.clone()
        self.vectors = nn.Parameter(self.beginning.clone())
        kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
        self.optimizer = kinds[settings.optimizer]([self.vectors], weight_decay=settings.weight_decay)
        self.identity = self._identity(rows)
        self._resume()

    @property
    def judged(self) -> Gallery:
        """Held-out images, or those learned from where there are none."""
        return self.held_out if len(self.held_out) else self.learn

    def remarks(self) -> list[str]:
        """What learns from what, and what was left out."""
        n, width = self.vectors.shape
        learns = f"{n} vectors of {width} numbers learn" if n > 1 else f"1 vector of {width} numbers learns"
        about = f"{learns} from {self.standing.start!r} on; all weights of {self.model.name} rest"
        small = f"{self.too_small} masks are smaller than a cell of the model's answer: left out"
        return [about, *self.lessons.remarks(), *([small] if self.too_small else [])]

    def steps(self) -> Iterator[StepRecord]:
        """One record a step; a checkpoint with each judgement and by the clock. Stops early where nothing is gained.

        IoU is in the model's frame, `judged_iou` at full size; step 0 is the judgement before anything was learned.
        """
        settings, at = self.settings, self.standing
        if not at.step and not at.history:
            at.before = at.best = mean_iou(self.judge(self.beginning))
            self._note(0, {"judged_iou": at.before})
            yield StepRecord(0, settings.steps, 0.0, {"judged_iou": at.before})
        saved = time.monotonic()
        while at.step < settings.steps and not at.stopped:
            began = time.monotonic()
            found = self._step()
            if found is None:
                break
            seconds = time.monotonic() - began
            at.seconds, at.step = at.seconds + seconds, at.step + 1
            judges = at.step % settings.validate_every == 0 or at.step == settings.steps
            if judges:
                found["judged_iou"] = self._compare()
            self._note(at.step, found)
            if judges or time.monotonic() - saved > settings.save_seconds:
                self._save()
                saved = time.monotonic()
            rate = (self.examples.batch + self.without.batch) / seconds
            yield StepRecord(at.step, settings.steps, rate, {k: v for k, v in found.items() if k != "query"})
        if at.stopped:
            _log.warning("%s", at.stopped)
        if at.diverged:  # what is kept goes on from the last step that was finite
            return
        self._save()

    def judge(self, vectors: Float[Tensor, "n d"]) -> list[Judgement]:
        """On held-out images, or on those learned from where there are none."""
        return self.judged.judge(vectors)

    @property
    def concept(self) -> Concept:
        """The best vectors so far, with how they were made and how good they are."""
        at, settings = self.standing, self.settings
        held_out = "held_out_iou" if len(self.held_out) else "train_iou"
        made_by = {
            "level": LEVEL,
            "positions": "between the marks of beginning and end, or in place of its name in a text",
            "seed_text": settings.seed_text,
            "start": at.start,
            "steps": at.step,
            "best_step": at.best_step,
            "images": len(self.learn),
            "held_out": len(self.held_out),
            "without": len(self.lessons.without),
            "box": "of the soft mask" if self.space.unions else "of the model",
            "seed": settings.seed,
            "stopped": at.stopped,
        }
        quality = {f"{held_out}_before": round(at.before, 4), held_out: round(at.best, 4)}
        vectors = self.best.float().cpu().numpy()
        return Concept(settings.title, self.model.name, vectors, made_by, quality, base_digest=self.space.digest)

    def _begin(self) -> Float[Tensor, "n d"]:
        settings = self.settings
        self.standing.start = settings.start or settings.seed_text
        if settings.start == "nearest":
            self.standing.start, _ = best_phrase(self.learn, settings.phrase)
        return begin(self.space, self.standing.start, settings.tokens, settings.seed)

    def _step(self) -> dict[str, Any] | None:
        """One step of the optimiser; None where the loss is not finite, which leaves the vectors as they are."""
        settings, step = self.settings, self.standing.step
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps, settings.warmup)
        lessons = self._learn(self.examples.of_step(step) + self.without.of_step(step))
        held = settings.norm_weight * self._away()
        if settings.norm_weight:
            held.backward()
        longest = settings.clip_norm or np.inf
        norm = float(nn.utils.clip_grad_norm_([self.vectors], longest))
        loss = float(np.mean([float(one.loss) for one in lessons])) + float(held.detach())
        if not (np.isfinite(loss) and np.isfinite(norm)):
            self.standing.diverged = True
            self.standing.stopped = (
                f"stopped at step {step + 1}, as the loss was not finite: the best vectors so far are kept; give a"
                " smaller --learning-rate"
            )
            return None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss, **_means([one.parts for one in lessons]), "query": [one.query for one in lessons]}

    def _learn(self, examples: Sequence[Example]) -> list[Lesson]:
        """Gradients of the mean loss over all images, some at once."""
        lessons, where = list[Lesson](), (self.model.input_size, torch.device(self.model.device))
        at_once = self.settings.at_once or self.space.at_once
        for start in range(0, len(examples), at_once):
            part = examples[start : start + at_once]
            kept = [self._features(one.pair.image, one.pair.masks.size, one.view) for one in part]
            features = stacked(kept)
            with mixed_precision(self.model.device):
                answers = self.space.answer(features, self.vectors)
            found = [
                judge_image(answers, row, Wanted.of(one.targets, *where), self.space.unions, self.settings.objective)
                for row, one in enumerate(part)
            ]
            (torch.stack([one.loss for one in found]).sum() / len(examples)).backward()
            lessons += [dataclasses.replace(one, loss=one.loss.detach()) for one in found]
        return lessons

    def _away(self) -> Tensor:
        """How far the vectors' norms are from the mean norm of the word table, squared, in shares of it."""
        usual = self.space.table.float().norm(dim=1).mean()
        away: Tensor = ((self.vectors.norm(dim=1) - usual) / usual).square().mean()
        return away

    def _compare(self) -> float:
        """Judges, and keeps the vectors if they are the best so far."""
        at, found = self.standing, mean_iou(self.judge(self.vectors.detach()))
        at.stale += 1
        if found > at.best:
            at.best, at.best_step, at.stale = found, at.step, 0
            self.best = self.vectors.detach().clone()
        if self.settings.patience and at.stale >= self.settings.patience and at.step < self.settings.steps:
            self.standing.stopped = f"stopped at step {at.step}: nothing was gained since step {at.best_step}"
        return found

    def _note(self, step: int, found: dict[str, Any]) -> None:
        """A row of the history, and with each judgement the words that are nearest."""
        rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in found.items()}
        self.standing.history.append({"step": step, **rounded})
        if "judged_iou" in found:
            pieces = nearest_pieces(self.space, self.vectors.detach())
            listed = [", ".join(f"{one.words} {one.cosine:.2f}" for one in row) for row in pieces]
            self.standing.nearest += [f"step {step}, vector {i}: {row}" for i, row in enumerate(listed, 1)]

    def _examples(self, pairs: Sequence[Pair], batch: int) -> Examples:
        views = self.settings.views or (1 if len(self.lessons.learn) == 1 else 2)
        return Examples(pairs, self.model, min(batch, len(pairs)), MOST_OBJECTS, views, self.settings.seed)

    def _save(self) -> None:
        state = {"run": self.identity, "standing": asdict(self.standing), "vectors": self.vectors.detach()}
        state |= {"best": self.best, "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self._checkpoint, state)
        self.saved_step = self.standing.step

    @property
    def _checkpoint(self) -> Path:
        return self.settings.output / "checkpoint.pt"

    def _resume(self) -> None:
        state = load_same_run(self._checkpoint, self.identity)
        if state is None:
            return
        with torch.no_grad():
            self.vectors.copy_(state["vectors"])
        self.best = state["best"].to(self.vectors.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.standing = Standing(**state["standing"])
        self.saved_step = self.standing.step

    def _identity(self, rows: Sequence[Pair]) -> dict[str, str]:
        return {
            "model": self.space.digest,
            "beginning": sha256(self.beginning.cpu().numpy().tobytes()).hexdigest()[:32],
            "training data": digest_of_pairs([*rows, *self.lessons.without]),
            "held-out data": digest_of_pairs(self.lessons.held_out.rows),
            **told(self.settings, FREE),
        }


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: float(np.mean([one[name] for one in parts if name in one])) for name in names}
