"""What each step of fine-tuning learns from: which images, in which view, and which of their objects.

All of it is a function of the seed and the step alone, so a resumed run sees what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anymask.data.pairs import Pair, Pairs
from anymask.models.promptable import PromptableModel
from anymask.training.caching import View, view_of
from anymask.training.interaction import Targets, targets_in


@dataclass(frozen=True)
class Example:
    """An image as it is looked at in one step, and some of its objects there."""

    pair: Pair
    view: View
    targets: Targets


@dataclass(frozen=True)
class Examples:
    """`batch` images a step, every one once an epoch, with at most `objects` objects each, in one of `views` views."""

    pairs: Sequence[Pair]
    model: PromptableModel
    batch: int
    objects: int
    views: int
    seed: int

    def of_step(self, step: int) -> list[Example]:
        """The images of one step."""
        return [self._example(place) for place in range(step * self.batch, (step + 1) * self.batch)]

    def _example(self, place: int) -> Example:
        epoch, turn = divmod(place, len(self.pairs))
        row = int(np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))[turn])
        pair, rng = self.pairs[row], np.random.default_rng((self.seed, place, 1))
        view = view_of(pair.masks.size, int(rng.integers(self.views)), (self.seed, row))
        order = rng.permutation(len(pair.masks))[: self.objects]
        targets = self._targets(pair, view, order)
        if len(order) and not len(targets):  # a part of the image without any of these objects
            view = View(None, view.mirrored)
            targets = self._targets(pair, view, order)
        return Example(pair, view, targets)

    def _targets(self, pair: Pair, view: View, rows: np.ndarray) -> Targets:
        dense = pair.masks[rows].masks
        frame = self.model.frame(pair.masks.size, view.crop_box)
        return targets_in(frame, dense[:, :, ::-1] if view.mirrored else dense, self.model.mask_size)


def large_enough(pairs: Pairs, model: PromptableModel) -> tuple[Pairs, int]:
    """Without objects that are smaller than a cell of the model's mask, and how many objects these were."""
    kept, dropped = list[Pair](), 0
    for pair in pairs.rows:
        frame = model.frame(pair.masks.size)
        content = np.prod(frame.content_size) / np.prod(frame.input_size) * np.prod(model.mask_size)
        rows = pair.masks.areas * content / np.prod(frame.size) >= 1
        dropped += int((~rows).sum())
        if rows.any():
            kept.append(Pair(pair.image, pair.masks[rows]))
    return replace(pairs, rows=tuple(kept)), dropped
