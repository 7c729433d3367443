"""What survives of the candidates of one crop in everything mode, in the exact way of the reference or a faster one.

Exact, step by step as `_process_batch` and `_process_crop` of SamAutomaticMaskGenerator (segment-anything; SAM, section
B): by predicted IoU; at the resolution of the crop by stability; without those at edges of the crop; by non-maximum
suppression of boxes. But mask after mask, so that only one is there in full size. Empty masks never survive.

The fast way takes the same steps, but of a small mask only within its box, and of a large one on the decoder's
low-resolution logits, where box and stability are as good as a low-resolution cell lets them be. Large masks are made
in full size at the end, if they are still there, and within their box, too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anymask.models.decode import Scored
from anymask.ops import boxes as box_ops
from anymask.ops import resize, rle
from anymask.ops.rle import Rle
from anymask.prompting import check_finite, place_on_crop, stability
from anymask.types import Frame, Masks

SMALL = 64 * 64  # low-resolution cells in the box of a mask that is looked at in full resolution


@dataclass(frozen=True)
class Limits:
    """From when on a candidate survives; a limit of 0 lets everything pass."""

    predicted_iou: float
    stability: float
    stability_offset: float
    box_nms: float
    drop_cut: bool = True  # what ends at an edge of the crop; tiles keep it, to be joined


class Kept(NamedTuple):
    """One survivor; its box is in pixels of the crop, and `mask` makes its mask in pixels of the image."""

    predicted_iou: float
    stability: float
    box: Float[np.ndarray, "4"]
    point: Float[np.ndarray, "2"]
    mask: Callable[[], Rle]


class Sieve(ABC):
    """Takes the scored clicks of one crop chunk by chunk, and gives the masks that are left."""

    def __init__(self, frame: Frame, limits: Limits) -> None:
        self.frame, self.limits, self.kept = frame, limits, list[Kept]()

    def add(self, points: Float[np.ndarray, "n 2"], scored: Scored) -> None:
        """Clicks in pixels of the image, and what the decoder answers."""
        check_finite(scored.predicted_iou, "the model")
        keep = scored.predicted_iou > self.limits.predicted_iou
        if self.limits.predicted_iou <= 0:
            keep = torch.ones_like(keep)
        logits, iou = scored.logits(keep).float(), scored.predicted_iou[keep].float().cpu().numpy()
        self.kept += self._sifted(points[keep.nonzero()[:, 0].cpu().numpy()], iou, logits)

    def masks(self) -> Masks:
        """Masks in pixels of the image, the highest predicted IoU first."""
        size, crop = self.frame.size, self.frame.crop_box
        if not self.kept:
            return Masks.empty(size)
        scores = np.asarray([one.predicted_iou for one in self.kept])
        best = box_ops.distinct(np.stack([one.box for one in self.kept]), scores, self.limits.box_nms)
        kept = [self.kept[i] for i in best]
        masks = Masks.from_rles(
            [one.mask() for one in kept],
            size,
            scores=scores[best],
            stability=np.asarray([one.stability for one in kept], np.float32),
            point_coords=np.stack([one.point for one in kept]).astype(np.float32),
            crop_boxes=np.tile(np.asarray(crop), (len(kept), 1)),
        )
        return masks[np.flatnonzero(masks.areas)]

    @abstractmethod
    def _sifted(
        self, points: Float[np.ndarray, "k 2"], iou: Float[np.ndarray, "k"], logits: Float[Tensor, "k lh lw"]
    ) -> list[Kept]:
        """Those that are stable, whole and not empty."""

    def _is_whole(self, boxes: Float[np.ndarray, "k 4"]) -> np.ndarray:
        """Whether a box in pixels of the crop keeps off the crop's edges."""
        if not self.limits.drop_cut:
            return np.ones(len(boxes), bool)
        x0, y0, _, _ = self.frame.crop_box
        return ~box_ops.near_crop_edge(boxes + np.asarray((x0, y0, x0, y0)), self.frame.crop_box, self.frame.size)


class ExactSieve(Sieve):
    """The reference's steps at the resolution of the crop."""

    def _sifted(self, points: np.ndarray, iou: np.ndarray, logits: Tensor) -> list[Kept]:
        rows = zip(iou.tolist(), logits, points, strict=True)
        found = [self._one(predicted_iou, one, point) for predicted_iou, one, point in rows]
        return [one for one in found if one is not None]

    def _one(self, predicted_iou: float, logits: Float[Tensor, "lh lw"], point: np.ndarray) -> Kept | None:
        full = place_on_crop(logits[None], self.frame)
        stable = float(stability(full, self.limits.stability_offset))
        mask = (full[0] > 0).cpu().numpy()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if stable < self.limits.stability or not len(rows):
            return None
        # As in the reference the box ends on its last pixel, not after it.
        box = np.asarray((columns[0], rows[0], columns[-1], rows[-1]), np.float32)
        if not self._is_whole(box[None])[0]:
            return None
        x0, y0, _, _ = self.frame.crop_box
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        packed = rle.encode_window(inside, x0 + int(columns[0]), y0 + int(rows[0]), self.frame.size)
        return Kept(predicted_iou, stable, box, point, lambda: packed)


class FastSieve(Sieve):
    """The same steps, in full resolution for small masks alone."""

    def _sifted(self, points: np.ndarray, iou: np.ndarray, logits: Tensor) -> list[Kept]:
        grid = _Grid.of(self.frame, (logits.shape[1], logits.shape[2]))
        shown = logits[:, : grid.shown[0], : grid.shown[1]]
        stable = stability(shown, self.limits.stability_offset).cpu().numpy()
        inside, around = _boxes(shown > 0), _boxes(shown > -self.limits.stability_offset)
        kept = list[Kept]()
        for i, cells in inside.items():
            wide = around[i] if around[i].area <= SMALL else None
            given = float(iou[i]), float(stable[i]), points[i]
            if cells.area <= SMALL:
                one = self._small(grid, logits[i], cells, wide, *given)
            else:
                one = self._large(grid, logits[i], cells, *given)
            if one is not None and one.stability >= self.limits.stability:
                kept.append(one)
        whole = self._is_whole(np.asarray([one.box for one in kept], np.float32).reshape(-1, 4))
        return [one for one, keeps_off in zip(kept, whole, strict=True) if keeps_off]

    def _small(
        self,
        grid: "_Grid",
        logits: Tensor,
        cells: "_Cells",
        wide: "_Cells | None",
        iou: float,
        stable: float,
        point: np.ndarray,
    ) -> Kept | None:
        """`wide` holds all that counts for stability; None where that is large."""
        within = wide or cells
        full, left, top = grid.place(grid.window(logits, within), within, self.frame.through_input)
        if wide is not None:
            stable = float(stability(full[None], self.limits.stability_offset))
        mask = (full > 0).numpy()
        if not mask.any():
            return None
        (y0, y1), (x0, x1) = (_ends(np.asarray(mask.any(axis=axis))) for axis in (1, 0))
        packed = grid.packed(mask[y0:y1, x0:x1], left + x0, top + y0)
        box = np.asarray((left + x0, top + y0, left + x1 - 1, top + y1 - 1), np.float32)
        return Kept(iou, stable, box, point, lambda: packed)

    def _large(
        self, grid: "_Grid", logits: Tensor, cells: "_Cells", iou: float, stable: float, point: np.ndarray
    ) -> Kept | None:
        window = grid.window(logits, cells).half()

        def make() -> Rle:
            full, left, top = grid.place(window.float(), cells, False)
            return grid.packed((full > 0).numpy(), left, top)

        return Kept(iou, stable, grid.box(cells), point, make)


class _Cells(NamedTuple):
    """The low-resolution cells of a mask: from `top` to before `bottom`, from `left` to before `right`."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class _Grid:
    """The low-resolution cells of a frame: how many pixels of the crop each covers, how many show the crop."""

    frame: Frame
    step: tuple[float, float]  # pixels a cell, down and across
    shown: tuple[int, int]

    @classmethod
    def of(cls, frame: Frame, cells: tuple[int, int]) -> "_Grid":
        x0, y0, x1, y1 = frame.crop_box
        shares = [content / whole for content, whole in zip(frame.content_size, frame.input_size, strict=True)]
        step = [side / (share * n) for side, share, n in zip((y1 - y0, x1 - x0), shares, cells, strict=True)]
        shown = [math.ceil(share * n) for share, n in zip(shares, cells, strict=True)]
        return cls(frame, (step[0], step[1]), (shown[0], shown[1]))

    def box(self, cells: _Cells) -> Float[np.ndarray, "4"]:
        """In pixels of the crop, ending on the last pixel."""
        down, across = self.step
        corners = cells.left * across, cells.top * down, cells.right * across - 1, cells.bottom * down - 1
        return np.asarray(corners, np.float32)

    def window(self, logits: Float[Tensor, "m l"], cells: _Cells) -> Float[Tensor, "lh lw"]:
        """The cells and one more on each side."""
        return logits[max(cells.top - 1, 0) : cells.bottom + 1, max(cells.left - 1, 0) : cells.right + 1].cpu()

    def place(
        self, window: Float[Tensor, "lh lw"], cells: _Cells, through_input: bool
    ) -> tuple[Float[Tensor, "wh ww"], int, int]:
        """The logits of a `window` in pixels of the crop, and where they begin: x and y.

        `through_input` in two steps, as SAM 1 does; for large masks that costs much and changes little.
        """
        x0, y0, x1, y1 = self.frame.crop_box
        rows = _pixels(cells.top, cells.bottom, self.step[0], y1 - y0)
        columns = _pixels(cells.left, cells.right, self.step[1], x1 - x0)
        down = self._places(0, rows, max(cells.top - 1, 0), through_input)
        across = self._places(1, columns, max(cells.left - 1, 0), through_input)
        for some_rows, some_columns in zip(down, across, strict=True):
            window = resize.sample(window, some_rows, some_columns)
        return window, int(columns[0]), int(rows[0])

    def _places(
        self, axis: int, pixels: Int[np.ndarray, "k"], first: int, through_input: bool
    ) -> list[Float[Tensor, "_"]]:
        """Where pixels of the crop lie in a window that begins at the cell `first`, for each step of `place`."""
        if not through_input:
            return [_floats((pixels + 0.5) / self.step[axis] - 0.5 - first)]
        x0, y0, x1, y1 = self.frame.crop_box
        side, content = (y1 - y0, x1 - x0)[axis], self.frame.content_size[axis]
        at = (pixels + 0.5) * content / side - 0.5
        inputs = np.arange(int(at[0]), min(int(at[-1]) + 2, content))
        return [_floats((inputs + 0.5) * side / content / self.step[axis] - 0.5 - first), _floats(at - inputs[0])]

    def packed(self, mask: Bool[np.ndarray, "wh ww"], left: int, top: int) -> Rle:
        """A mask that begins at this pixel of the crop, in the image."""
        x0, y0, _, _ = self.frame.crop_box
        return rle.encode_window(mask, x0 + left, y0 + top, self.frame.size)


def _floats(places: Float[np.ndarray, "k"]) -> Float[Tensor, "k"]:
    return torch.from_numpy(places.astype(np.float32))


def _boxes(on: Bool[Tensor, "k lh lw"]) -> dict[int, _Cells]:
    """The cells that are on, of those rows where some are."""
    rows, columns = on.any(2).cpu().numpy(), on.any(1).cpu().numpy()
    return {int(i): _Cells(*_ends(rows[i]), *_ends(columns[i])) for i in np.flatnonzero(rows.any(1))}


def _ends(on: Bool[np.ndarray, "n"]) -> tuple[int, int]:
    """From the first that is on to after the last."""
    where = np.flatnonzero(on)
    return int(where[0]), int(where[-1]) + 1


def _pixels(first: int, end: int, step: float, side: int) -> Int[np.ndarray, "k"]:
    """The pixels between the centres of the cells before the first and at the end, within the crop."""
    low, high = math.floor((first - 0.5) * step - 0.5), math.ceil((end + 0.5) * step + 0.5)
    return np.arange(max(low, 0), max(min(high, side), max(low, 0) + 1))
