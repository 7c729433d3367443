"""A contact sheet: every mask cut out of its photo in a cell of its own, the largest first, with id, score and area.

A cell shows the object in its colours, a little of what is around it faded, and its outline. Cells are drawn twice as
large as they are shown, so that outlines are smooth.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw

from anymask.data.drawing import blend, font, shades, signed_distance
from anymask.ops import rle
from anymask.types import Image, Masks

# More cells than this make no readable picture: the header says how many masks are not shown.
MOST_CELLS = 400
_SIDE, _FINE = 132, 2
_GAP, _MARGIN, _CAPTION, _HEADER = 14, 28, 38, 52
_PAPER, _CELL, _INK, _GREY = (250, 250, 248), (238, 238, 234), (32, 33, 36), (118, 120, 126)
# A small object is enlarged this many times at most; more of what is around it is shown instead.
_LARGEST_SCALE = 3


def draw_sheet(image: Image, masks: Masks) -> Image:
    """All masks that are not empty, in cells by area; beyond `MOST_CELLS` the smallest are left out, and counted."""
    if masks.size != image.size:
        raise ValueError(f"masks must have the size of the image, {image.size} (h, w), got {masks.size}")
    order = np.argsort(-masks.areas, kind="stable")
    there = order[masks.areas[order] > 0]
    shown = masks[there[:MOST_CELLS]].compact()
    tones = shades(image, masks)[there]
    sheet = _Sheet.of(len(shown))
    canvas = PillowImage.new("RGB", (sheet.width, sheet.height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    _write_header(pen, shortened(pen, image.name, 19, sheet.width - 2 * _MARGIN), len(there), len(shown))
    boxes, areas = shown.boxes.astype(int).tolist(), shown.areas.tolist()
    for i, one in enumerate(shown.rles):
        x, y = sheet.corner(i)
        canvas.paste(PillowImage.fromarray(cutout(image, one, boxes[i], tones[i], _SIDE)), (x, y))
        _write_caption(pen, shown[i], areas[i], tones[i], x, y + _SIDE)
    return Image(np.array(canvas), image.name)


def cutout(
    image: Image, one: rle.Rle, box: list[int], shade: UInt8[np.ndarray, "3"], side: int
) -> UInt8[np.ndarray, "s s 3"]:
    """The object in `box` with its surroundings, in the middle of a square of `side` pixels."""
    x0, y0, x1, y1 = _around(box, image.size, side)
    fine = side * _FINE
    scale = fine / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    photo = np.asarray(cv2.resize(image.pixels[y0:y1, x0:x1], size, interpolation=how))
    solid = rle.decode_part(one, (x0, y0, x1, y1)).astype(np.float32)
    distance = signed_distance(np.asarray(cv2.resize(solid, size, interpolation=how)) >= 0.5, smoothing=1.0)
    blend(photo, np.asarray(_CELL), 0.72 * np.clip(0.5 - distance, 0, 1))
    blend(photo, shade, np.clip(2.0 - np.abs(distance), 0, 1))
    cell = np.full((fine, fine, 3), _CELL, np.uint8)
    left, top = (fine - size[0]) // 2, (fine - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = photo
    return np.asarray(cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA))


def shortened(pen: ImageDraw.ImageDraw, words: str, points: float, width: int) -> str:
    """As much of the words as fits in so many pixels."""
    kept = words
    while pen.textlength(kept, font=font(points)) > width:
        words = words[:-1]
        kept = f"{words}..."
    return kept


@dataclass(frozen=True)
class _Sheet:
    """How many cells lie side by side and above each other."""

    columns: int
    rows: int

    @classmethod
    def of(cls, n: int) -> "_Sheet":
        """About as wide as high, at least wide enough for the header."""
        columns = max(3, round(float(np.sqrt(1.5 * n))))
        return cls(columns, -(-n // columns))

    @property
    def width(self) -> int:
        return 2 * _MARGIN + self.columns * (_SIDE + _GAP) - _GAP

    @property
    def height(self) -> int:
        return 2 * _MARGIN + _HEADER + max(0, self.rows * (_SIDE + _CAPTION + _GAP) - _GAP)

    def corner(self, i: int) -> tuple[int, int]:
        row, column = divmod(i, self.columns)
        return _MARGIN + column * (_SIDE + _GAP), _MARGIN + _HEADER + row * (_SIDE + _CAPTION + _GAP)


def _around(box: list[int], size: tuple[int, int], shown: int) -> tuple[int, int, int, int]:
    """A square that holds the box and some of its surroundings, moved into the photo as far as it fits."""
    x0, y0, x1, y1 = box
    side = round(max(1.25 * max(x1 - x0, y1 - y0), shown / _LARGEST_SCALE))
    left, right = _within((x0 + x1) // 2, side, size[1])
    top, bottom = _within((y0 + y1) // 2, side, size[0])
    return left, top, right, bottom


def _within(middle: int, length: int, end: int) -> tuple[int, int]:
    """A stretch of `length` around `middle`, moved to lie from 0 to `end`, or cut to it."""
    start = max(0, min(middle - length // 2, end - length))
    return start, min(start + length, end)


def _write_header(pen: ImageDraw.ImageDraw, name: str, n: int, shown: int) -> None:
    pen.text((_MARGIN, _MARGIN - 6), name, font=font(19), fill=_INK)
    pen.text((_MARGIN, _MARGIN + 19), _summary(n, shown), font=font(13), fill=_GREY)


def _summary(n: int, shown: int) -> str:
    """How many masks there are, what the captions say, and how many masks are not shown."""
    if not n:
        return "no masks"
    count = f"{n:,} masks, largest first" if n > 1 else "1 mask"
    return f"{count}: id, score, pixels" + (f"; the {n - shown:,} smallest are not shown" if n > shown else "")


def _write_caption(
    pen: ImageDraw.ImageDraw, one: Masks, area: int, shade: UInt8[np.ndarray, "3"], x: int, y: int
) -> None:
    """A spot of the object's colour and its id, the score at the right, area and label below."""
    pen.ellipse((x, y + 9, x + 7, y + 16), fill=tuple(shade.tolist()))
    pen.text((x + 12, y + 12.5), str(one.ids[0]), font=font(13), fill=_INK, anchor="lm")
    pen.text((x + _SIDE, y + 12.5), f"{one.scores[0]:.2f}", font=font(12), fill=_INK, anchor="rm")
    words = shortened(pen, " ".join([f"{area:,} px", *one.labels[0].split()]), 11, _SIDE)
    pen.text((x, y + 28), words, font=font(11), fill=_GREY, anchor="lm")
