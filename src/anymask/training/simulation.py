"""Prompts simulated from masks, as SAM trains (Kirillov et al. 2023, section A): a first prompt, then corrections.

Everything here is in input pixels of the training crop; masks and logits are at a quarter of it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.pocket_network import PocketPrompts
from anymask.ops import clicks

CLICK, BOX, MASK, NAMED_CLICK = range(4)  # kinds of a first prompt
KIND_SHARES = (0.42, 0.36, 0.08, 0.14)
MASK_LOGIT = 6.0  # of a mask that is given as a prompt: about what a sure prediction has


@dataclass(frozen=True)
class PhraseTable:
    """The text tower's tokens for every phrase, computed once: tokens [k l t], mask [k l]."""

    tokens: Tensor
    mask: Tensor

    def look_up(self, rows: Int[Tensor, "n"]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of each row; -1 gives no text."""
        return self.tokens[rows.clamp(min=0)], self.mask[rows.clamp(min=0)] & (rows >= 0)[:, None]


def empty_prompts(n: int, quarter: int, table: PhraseTable, phrases: Int[Tensor, "n"] | None = None) -> PocketPrompts:
    """n prompts that say nothing but their phrase."""
    device = table.tokens.device
    rows = torch.full((n,), -1, device=device) if phrases is None else phrases
    tokens, mask = table.look_up(rows)
    return PocketPrompts(
        points=torch.zeros(n, 1, 2, device=device),
        labels=torch.full((n, 1), -1, device=device),
        boxes=torch.zeros(n, 4, device=device),
        has_box=torch.zeros(n, dtype=torch.bool, device=device),
        masks=torch.zeros(n, quarter, quarter, device=device),
        has_mask=torch.zeros(n, dtype=torch.bool, device=device),
        text_tokens=tokens,
        text_mask=mask,
    )


def first_prompts(
    targets: Float[Tensor, "n q q"],
    points: Float[Tensor, "n 2"],
    boxes: Float[Tensor, "n 4"],
    phrases: Int[Tensor, "n"],
    only_boxed: Bool[Tensor, "n"],
    table: PhraseTable,
    rng: np.random.Generator,
) -> tuple[PocketPrompts, Int[Tensor, "n"]]:
    """A first prompt for each object, of a kind drawn at random (but a box where `only_boxed`), and the kinds."""
    kinds = torch.from_numpy(rng.choice(4, size=len(targets), p=KIND_SHARES)).to(targets.device)
    kinds = torch.where(only_boxed, BOX, kinds)
    kinds = torch.where((kinds == NAMED_CLICK) & (phrases < 0), CLICK, kinds)
    named = torch.where(kinds == NAMED_CLICK, phrases, -1)
    clicked = (kinds == CLICK) | (kinds == NAMED_CLICK)
    prompts = replace(
        empty_prompts(len(targets), targets.shape[-1], table, named),
        points=points[:, None],
        labels=torch.where(clicked, 1, -1)[:, None],
        boxes=boxes,
        has_box=kinds == BOX,
        masks=_rough_masks(targets, rng),
        has_mask=kinds == MASK,
    )
    return prompts, kinds


def corrected(
    prompts: PocketPrompts, logits: Float[Tensor, "n q q"], targets: Float[Tensor, "n q q"], rng: np.random.Generator
) -> PocketPrompts:
    """The same prompts with one more click in the largest error and the mask so far; none where nothing is wrong."""
    device = targets.device
    predicted, wanted = (logits > 0).cpu().numpy(), (targets > 0.5).cpu().numpy()
    found = [clicks.next_click(mask, target) for mask, target in zip(predicted, wanted, strict=True)]
    moved = rng.uniform(-1, 1, (len(found), 2))
    coords = [[4 * c[0] + m[0], 4 * c[1] + m[1]] if c else [0.0, 0.0] for c, m in zip(found, moved, strict=True)]
    labels = [c[2] if c else -1 for c in found]
    return replace(
        prompts,
        points=torch.cat([prompts.points, torch.tensor(coords, dtype=torch.float32, device=device)[:, None]], dim=1),
        labels=torch.cat([prompts.labels, torch.tensor(labels, device=device)[:, None]], dim=1),
        masks=logits.clamp(-10, 10),
        has_mask=torch.ones_like(prompts.has_mask),
    )


def joined(first: PocketPrompts, second: PocketPrompts) -> PocketPrompts:
    """The rows of both, which must have equally many points and text tokens."""
    names = PocketPrompts.__dataclass_fields__
    return PocketPrompts(**{name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names})


def _rough_masks(targets: Float[Tensor, "n q q"], rng: np.random.Generator) -> Float[Tensor, "n q q"]:
    """Sloppy versions of the targets as logits: blurred, moved by a cell or two, grown or shrunk."""
    blurred = functional.avg_pool2d(targets[:, None], 5, stride=1, padding=2)[:, 0]
    dy, dx = rng.integers(-2, 3, 2)
    threshold = float(rng.uniform(0.25, 0.75))
    return MASK_LOGIT * torch.where(blurred.roll((int(dy), int(dx)), (1, 2)) > threshold, 1.0, -1.0)
