"""The four-panel figure of a result: image, final masks, overlay, and the best three candidates with their scores.

An image of any size is reduced to a panel; only candidates are cut out of it at full size. Where a result tells of no
candidates its surest masks stand in for them.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw

from anymask.data.drawing import draw, font, shades
from anymask.data.reducing import resized_image, resized_masks
from anymask.data.sheets import cutout, shortened
from anymask.ops import rle
from anymask.types import Image, Masks

CANDIDATES = 3
_PANEL = 560  # the longer side of a panel
_FINE = 2  # masks are drawn that much larger and reduced
_GAP, _MARGIN, _TOP = 20, 28, 68
_LEAST_CELL, _MOST_CELL, _LEAST_WIDTH, _NAME_WIDTH = 128, 180, 200, 120
_PAPER, _INK, _GREY, _LINE, _BAR = (250, 250, 248), (32, 33, 36), (118, 120, 126), (222, 222, 218), (92, 108, 140)
_GROUND = (20, 20, 24)


def draw_panels(image: Image, masks: Masks) -> Image:
    """The figure, at most 2400 pixels wide whatever the size of the image."""
    if masks.size != image.size:
        raise ValueError(f"masks must have the size of the image, {image.size} (h, w), got {masks.size}")
    candidates = _candidates(masks)
    figure = _Figure.of(image.size)
    small, reduced = figure.reduced(image, masks)
    canvas = PillowImage.new("RGB", (figure.width, figure.height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(
        (image.name, _count("", len(reduced), "mask"), "overlay", _count("best ", len(candidates), "candidate"))
    ):
        words = shortened(pen, title, 22, figure.columns[column])
        pen.text((figure.left(column), _MARGIN), words, font=font(22), fill=_INK)
    for column, pixels in enumerate((small.pixels, _flat(small, reduced), draw(small, reduced).pixels)):
        panel = np.asarray(cv2.resize(pixels, figure.panel, interpolation=cv2.INTER_AREA))
        canvas.paste(PillowImage.fromarray(panel), (figure.left(column), _TOP))
    for row, shade in enumerate(shades(image, candidates)):
        _draw_candidate(canvas, image, candidates[row], shade, figure, row)
    return Image(np.array(canvas), image.name)


@dataclass(frozen=True)
class _Figure:
    """Where things lie: three panels of one size, and a column of candidates at least as high as they are."""

    panel: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int]) -> "_Figure":
        scale = _PANEL / max(size)
        return cls((max(1, round(size[1] * scale)), max(1, round(size[0] * scale))))

    @property
    def columns(self) -> tuple[int, ...]:
        """The width of each."""
        width = max(self.panel[0], _LEAST_WIDTH)
        return width, width, width, _PANEL

    @property
    def cell(self) -> int:
        """The side of a candidate's picture."""
        return int(np.clip((self.panel[1] + _GAP) // CANDIDATES - _GAP, _LEAST_CELL, _MOST_CELL))

    @property
    def width(self) -> int:
        return 2 * _MARGIN + sum(self.columns) + 3 * _GAP

    @property
    def height(self) -> int:
        return _TOP + max(self.panel[1], CANDIDATES * (self.cell + _GAP) - _GAP) + _MARGIN

    def left(self, column: int) -> int:
        return _MARGIN + sum(self.columns[:column]) + column * _GAP

    def reduced(self, image: Image, masks: Masks) -> tuple[Image, Masks]:
        """Both as large as masks are drawn; of the masks those that are not empty."""
        size = self.panel[1] * _FINE, self.panel[0] * _FINE
        there = masks[np.flatnonzero(masks.areas)].compact()
        return resized_image(image, size), resized_masks(there, size)


def _flat(image: Image, masks: Masks) -> UInt8[np.ndarray, "h w 3"]:
    """The masks in their colours on a dark ground, the smaller on top."""
    tones = np.concatenate([np.asarray([_GROUND], np.uint8), shades(image, masks)])
    return np.asarray(tones[rle.topmost(masks.rles, masks.scores, masks.size)])


def _candidates(masks: Masks) -> Masks:
    """The best first, as considered by the model, or the surest masks."""
    if masks.candidates is not None and len(masks.candidates):
        considered = masks.candidates
    else:
        considered = masks[np.argsort(-masks.scores, kind="stable")]
    return considered[np.flatnonzero(considered.areas)[:CANDIDATES]].compact()


def _draw_candidate(
    canvas: PillowImage.Image, image: Image, one: Masks, shade: UInt8[np.ndarray, "3"], figure: _Figure, row: int
) -> None:
    """Its picture, and beside it name, score and a bar for each of its measures."""
    x, y = figure.left(3), _TOP + row * (figure.cell + _GAP)
    picture = cutout(image, one.rles[0], one.boxes[0].astype(int).tolist(), shade, figure.cell)
    canvas.paste(PillowImage.fromarray(picture), (x, y))
    pen, x, right = ImageDraw.Draw(canvas), x + figure.cell + _GAP, x + _PANEL
    words = " ".join(one.labels[0].split()) or f"object {one.ids[0]}"
    pen.text((x, y + 12), shortened(pen, words, 19, right - x - 60), font=font(19), fill=_INK, anchor="lm")
    pen.text((right, y + 12), f"{one.scores[0]:.2f}", font=font(19), fill=_INK, anchor="rm")
    heights = range(y + 42, y + figure.cell, 23)
    for (name, values), middle in zip(one.measures.items(), heights, strict=False):
        _draw_bar(pen, name.replace("_", " "), float(values[0]), x, right, middle)


def _draw_bar(pen: ImageDraw.ImageDraw, name: str, value: float, x: int, right: int, y: int) -> None:
    """The name of a measure, its value from 0 to 1 as a bar, and the number."""
    start, end = x + _NAME_WIDTH, right - 52
    pen.text((x, y), shortened(pen, name, 15, _NAME_WIDTH - 8), font=font(15), fill=_GREY, anchor="lm")
    pen.rectangle((start, y - 5, end, y + 5), fill=_LINE)
    if value > 0:
        pen.rectangle((start, y - 5, start + round((end - start) * min(value, 1)), y + 5), fill=_BAR)
    pen.text((right, y), f"{value:.2f}", font=font(15), fill=_GREY, anchor="rm")


def _count(before: str, n: int, what: str) -> str:
    return f"{before}{n:,} {what}{'s' if n > 1 else ''}" if n else f"no {what}s"
