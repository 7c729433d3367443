"""The staged decoder: score many prompts on one image first, then make only the masks that are asked for.

Most answers to a grid of clicks are thrown away for their predicted IoU, which needs the tokens alone. So a `Stage`,
made once an image, gives the scores of a chunk of prompts, and `Scored.logits` upscales what survives. For decoders of
SAM, SAM 2 and SAM 3's tracker nothing of the image is copied for a prompt (`shared_two_way.py`); a family whose prompts
change the image itself (pocket draws them into it, a mask prompt is added to it) shares what it can.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.shared_two_way import Cells, SharedTwoWay

SCORED_AT_ONCE = 4  # prompts: each needs about 10 MB, and larger chunks leave the cache
SINGLE, CANDIDATES = slice(0, 1), slice(1, None)  # of a decoder's mask tokens
MASKS_AT_ONCE = 2  # prompts upscaled together: each needs 8 MB at full size, and larger chunks leave the cache


@dataclass(frozen=True)
class PromptTensors:
    """n prompts of one kind in model pixels: p points each (p may be 0), a box each or none, a mask each or none.

    `text`, of families that let a name join them, is the tokens of the one name that all prompts have.
    """

    point_coords: Float[Tensor, "n p 2"]
    point_labels: Int[Tensor, "n p"]
    boxes: Float[Tensor, "n 4"] | None = None
    masks: Float[Tensor, "n lh lw"] | None = None  # low-resolution logits in the model's frame
    text: Float[Tensor, "l t"] | None = None

    def __len__(self) -> int:
        return len(self.point_coords)


@runtime_checkable
class Scored(Protocol):
    """What a chunk of n prompts is worth, before any mask is made."""

    @property
    def predicted_iou(self) -> Float[Tensor, "n c"]:
        """Of each candidate."""

    def logits(self, keep: Bool[Tensor, "n c"]) -> Float[Tensor, "k lh lw"]:
        """Low-resolution logits of the candidates marked in `keep`, row by row."""


@runtime_checkable
class Stage(Protocol):
    """A decoder made ready for one image."""

    @property
    def chunk(self) -> int:
        """How many prompts at once suit it."""

    def score(self, prompts: PromptTensors) -> Scored:
        """The candidates of each prompt: whole, part, subpart."""


@dataclass(frozen=True)
class Whole:
    """Scores whose masks came with them."""

    predicted_iou: Float[Tensor, "n c"]
    masks: Float[Tensor, "n c lh lw"]

    def logits(self, keep: Bool[Tensor, "n c"]) -> Float[Tensor, "k lh lw"]:
        """As `Scored.logits`."""
        return self.masks[keep]


@dataclass(frozen=True)
class WholeStage:
    """For decoders that give scores and masks in one go: `respond` as in `PromptableModel`, for the one image."""

    respond: Callable[[PromptTensors], tuple[Tensor, Tensor]]
    chunk: int

    def score(self, prompts: PromptTensors) -> Whole:
        """As `Stage.score`."""
        masks, predicted_iou = self.respond(prompts)
        return Whole(predicted_iou, masks)


class SharedStage:
    """Of transformers' SamMaskDecoder and Sam2MaskDecoder in float32; a mask prompt goes the `whole` way.

    `tokens` are the decoder's own: the one at `iou_at` predicts the IoU, those after it make masks, and `chosen` says
    which of these are candidates. `finer` are SAM 2's features at strides 4 and 8; `embed` gives the sparse tokens of
    prompts, n t c.
    """

    chunk = SCORED_AT_ONCE

    def __init__(
        self,
        decoder: Any,
        tokens: Float[Tensor, "o c"],
        iou_at: int,
        image: Float[Tensor, "c h w"],
        position: Float[Tensor, "c h w"],
        embed: Callable[[PromptTensors], Tensor],
        whole: WholeStage,
        finer: Sequence[Tensor] = (),
        chosen: slice = CANDIDATES,
    ) -> None:
        self.chosen = chosen
        self.decoder, self.tokens, self.iou_at, self.embed, self.whole = decoder, tokens, iou_at, embed, whole
        self.transformer = SharedTwoWay(decoder.transformer, _cells(image), _cells(position))
        self.upscaling = _Upscaling(decoder, self.transformer.image, (image.shape[1], image.shape[2]), finer)

    def score(self, prompts: PromptTensors) -> Scored:
        """As `Stage.score`."""
        if prompts.masks is not None:
            return self.whole.score(prompts)
        own = self.tokens.expand(len(prompts), -1, -1)
        tokens, cells = self.transformer(torch.cat([own, self.embed(prompts)], dim=1))
        return _Shared(self, tokens, cells)


class _Shared:
    """Scores of `SharedStage`, and what its masks are made of."""

    def __init__(self, stage: SharedStage, tokens: Float[Tensor, "n t c"], cells: Cells) -> None:
        self.stage, self.tokens, self.cells = stage, tokens, cells
        self.predicted_iou: Tensor = stage.decoder.iou_prediction_head(tokens[:, stage.iou_at])[:, stage.chosen]

    def logits(self, keep: Bool[Tensor, "n c"]) -> Float[Tensor, "k lh lw"]:
        """As `Scored.logits`."""
        rows = keep.any(1).nonzero()[:, 0]
        networks = list(self.stage.decoder.output_hypernetworks_mlps)
        first = self.stage.iou_at + 1
        chosen = range(len(networks))[self.stage.chosen]
        weights = torch.stack([networks[i](self.tokens[rows, first + i]) for i in chosen], dim=1)
        parts = [
            self.stage.upscaling(self.cells[some], weights[i : i + MASKS_AT_ONCE])[keep[some]]
            for i in range(0, len(rows), MASKS_AT_ONCE)
            for some in [rows[i : i + MASKS_AT_ONCE]]
        ]
        h, w = self.stage.upscaling.size
        return torch.cat(parts) if parts else keep.new_zeros(0, 4 * h, 4 * w, dtype=self.tokens.dtype)


class _Upscaling:
    """The two transposed convolutions of stride 2, which are linear layers: pixels stay where their cell is to the end.

    The first is applied to the cells' shared part and basis, and not to cells.
    """

    def __init__(
        self, decoder: Any, image: Float[Tensor, "p c"], size: tuple[int, int], finer: Sequence[Tensor]
    ) -> None:
        self.size, self.norm = size, decoder.upscale_layer_norm
        first, second = decoder.upscale_conv1, decoder.upscale_conv2
        self.weight = first.weight.permute(2, 3, 1, 0).reshape(-1, image.shape[1])  # (2 2 e) c
        self.shared = image @ self.weight.T
        self.second = second.weight.permute(0, 2, 3, 1).flatten(1)  # e (2 2 f)
        fine, middle = finer or (None, None)
        self.first_bias = first.bias if middle is None else first.bias + _in_cells(middle, size)
        self.second_bias = second.bias if fine is None else second.bias + _in_cells(fine, size)

    def __call__(self, cells: Cells, weights: Float[Tensor, "n k f"]) -> Float[Tensor, "n k lh lw"]:
        n, k = weights.shape[:2]
        h, w = self.size
        x = cells.project(self.weight, self.shared).unflatten(2, (4, -1))
        x = functional.layer_norm(
            x.add_(self.first_bias), x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps
        )
        x = (functional.gelu(x) @ self.second).unflatten(3, (4, -1))
        x = functional.gelu(x.add_(self.second_bias)).flatten(1, 3) @ weights.transpose(1, 2)
        return x.view(n, h, w, 2, 2, 2, 2, k).permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(n, k, 4 * h, 4 * w)


def _cells(image: Float[Tensor, "c h w"]) -> Float[Tensor, "p c"]:
    return image.flatten(1).T.contiguous()


def _in_cells(finer: Float[Tensor, "e fh fw"], size: tuple[int, int]) -> Float[Tensor, "p ..."]:
    """Features at twice or four times the resolution of the cells, in the order in which upsampling makes them."""
    h, w = size
    e, twice = len(finer), finer.shape[1] == 2 * h
    if twice:
        return finer.view(e, h, 2, w, 2).permute(1, 3, 2, 4, 0).reshape(h * w, 4, e)
    return finer.view(e, h, 2, 2, w, 2, 2).permute(1, 4, 2, 5, 3, 6, 0).reshape(h * w, 4, 4, e)
