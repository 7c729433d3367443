"""Masks and prompts drawn on an image: translucent colour, smooth outlines, a chip with label and score, markers.

All sizes follow the image, so a thumbnail and a photo of 12 megapixels look alike. Everything is anti-aliased: outlines
are bands of a smoothed signed distance, chips and markers are drawn four times as large and reduced.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import cast

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from anymask.data.mosaics import draw_mosaic, mosaic_shades
from anymask.ops import colours
from anymask.types import Image, Masks, Prompt

# How much larger chips and markers are drawn before they are reduced.
_FINE = 4
_GREEN, _RED, _DARK, _WHITE = (30, 190, 90), (225, 50, 60), (20, 20, 24), (255, 255, 255)
_LONGEST_LABEL = 40
# Colours go by object id and repeat after this many.
_COLOURS = 9973

Pixels = UInt8[np.ndarray, "h w 3"]


def draw(
    image: Image, masks: Masks, *, labels: bool | None = None, opacity: float = 0.45, prompts: Sequence[Prompt] = ()
) -> Image:
    """A new image with `masks`, the largest at the back, and the points and boxes of `prompts` on top.

    An object's colour goes by its id. `labels` are chips; one that would cover another one, or is larger than the
    image, is left out. By default all have them but the masks of everything mode, which are drawn as a mosaic.
    """
    if masks.size != image.size:
        raise ValueError(f"masks must have the size of the image, {image.size} (h, w), got {masks.size}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be from 0 to 1, got {opacity}")
    unit = _unit(image.size)
    chips = _Chips(image.size, unit)
    if labels is None and masks.point_coords is not None:
        canvas = draw_mosaic(image, masks, opacity)
    else:
        canvas = image.pixels.copy()
        _draw_masks(canvas, masks, shades(image, masks), opacity, chips if labels is not False else None)
    for prompt in prompts:
        _draw_box(canvas, prompt, unit)
    chips.draw(canvas)
    for prompt in prompts:
        _draw_points(canvas, prompt, unit)
    return Image(canvas, image.name)


def _unit(size: tuple[int, int]) -> float:
    """The width of a thin line: 1 pixel up to 400 x 400, growing with the side."""
    return max(1.0, float(np.sqrt(size[0] * size[1])) / 400)


def shades(image: Image, masks: Masks) -> UInt8[np.ndarray, "n 3"]:
    """The colour in which each row is drawn: by its id, or of everything mode unlike its surroundings."""
    if masks.point_coords is not None:
        return mosaic_shades(image, masks)
    index = (masks.ids - 1) % _COLOURS
    return np.asarray(colours.palette(int(index.max(initial=0)) + 1)[index])


def _draw_masks(
    canvas: Pixels, masks: Masks, tones: UInt8[np.ndarray, "n 3"], opacity: float, chips: "_Chips | None"
) -> None:
    unit = _unit(masks.size)
    for row in np.argsort(-masks.areas, kind="stable").tolist():
        mask = masks[row].masks[0]
        if mask.any():
            _draw_mask(canvas, mask, tones[row], unit, opacity)
            if chips is not None:
                chips.add(_chip_text(masks.labels[row], float(masks.scores[row])), mask, tones[row])


def _draw_mask(
    canvas: Pixels, mask: Bool[np.ndarray, "h w"], shade: UInt8[np.ndarray, "3"], unit: float, opacity: float
) -> None:
    """Fill, a dark rim outside for contrast, and the outline, within the mask's surroundings only."""
    half = 0.8 * unit
    y0, y1, x0, x1 = _surroundings(mask, margin=int(4 * unit) + 4)
    distance = signed_distance(mask[y0:y1, x0:x1], smoothing=0.7 * unit)
    part = canvas[y0:y1, x0:x1]
    blend(part, shade, opacity * np.clip(distance + 0.5, 0, 1))
    blend(part, np.asarray(_DARK), 0.45 * np.clip(half + 0.8 * unit + 0.5 - np.abs(distance), 0, 1) * (distance < 0))
    blend(part, shade, np.clip(half + 0.5 - np.abs(distance), 0, 1))


def _surroundings(mask: Bool[np.ndarray, "h w"], margin: int) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    h, w = mask.shape
    y0, x0 = max(int(ys[0]) - margin, 0), max(int(xs[0]) - margin, 0)
    return y0, min(int(ys[-1]) + 1 + margin, h), x0, min(int(xs[-1]) + 1 + margin, w)


def signed_distance(mask: Bool[np.ndarray, "h w"], smoothing: float) -> Float[np.ndarray, "h w"]:
    """Pixels to the border, positive inside; smoothed along slanted borders, where pixels make stairs.

    The picture's own edge is no border: a mask that touches it goes on outside.
    """
    on = np.pad(mask, 1, mode="edge").astype(np.uint8)
    inside = cv2.distanceTransform(on, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - on, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    far = float(sum(mask.shape))
    distance = np.minimum(inside, far) - np.minimum(outside, far) - np.where(on > 0, 0.5, -0.5)
    return cast(np.ndarray, cv2.GaussianBlur(distance.astype(np.float32), (0, 0), smoothing)[1:-1, 1:-1])


def blend(part: Pixels, shade: np.ndarray, alpha: Float[np.ndarray, "h w"]) -> None:
    """Lay one colour over `part` in place, `alpha` from 0 to 1."""
    cover = alpha.astype(np.float32)
    part[:] = cv2.blendLinear(np.ascontiguousarray(part), np.full_like(part, shade), 1 - cover, cover)


def _stamp(canvas: Pixels, tile: UInt8[np.ndarray, "th tw 4"], x: int, y: int) -> None:
    """Lay an RGBA tile over `canvas` in place, its corner at x y; what lies outside is cut off."""
    h, w = canvas.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + tile.shape[1], w), min(y + tile.shape[0], h)
    if x1 > x0 and y1 > y0:
        cut = tile[y0 - y : y1 - y, x0 - x : x1 - x].astype(np.float32)
        part, alpha = canvas[y0:y1, x0:x1], cut[:, :, 3:] / 255
        part[:] = np.round(part + (cut[:, :, :3] - part) * alpha).astype(np.uint8)


class _Chips:
    """The labels of one picture: each gets the first free place around its mask, and all are drawn last."""

    def __init__(self, size: tuple[int, int], unit: float) -> None:
        self.size, self.unit = size, unit
        self.placed: list[tuple[UInt8[np.ndarray, "th tw 4"], int, int]] = []

    def add(self, text: str, mask: Bool[np.ndarray, "h w"], shade: UInt8[np.ndarray, "3"]) -> None:
        tile = _chip(text, tuple(shade.tolist()), max(12.0, 10 * self.unit))
        h, w = tile.shape[:2]
        if h > self.size[0] or w > self.size[1]:
            return
        for x, y in _places(mask, (h, w), round(2.5 * self.unit)):
            x, y = min(max(x, 0), self.size[1] - w), min(max(y, 0), self.size[0] - h)
            if all(x >= a + t.shape[1] or a >= x + w or y >= b + t.shape[0] or b >= y + h for t, a, b in self.placed):
                self.placed.append((tile, x, y))
                return

    def draw(self, canvas: Pixels) -> None:
        for tile, x, y in self.placed:
            _stamp(canvas, tile, x, y)


def _places(mask: Bool[np.ndarray, "h w"], tile: tuple[int, int], gap: int) -> Iterable[tuple[int, int]]:
    """Where a chip may lie: over the mask's top, in its thickest place, under it, at its sides."""
    h, w = tile
    y0, y1, x0, x1 = _surroundings(mask, margin=0)
    top = int(np.median(np.flatnonzero(mask[y0])))
    inside = cv2.distanceTransform(np.pad(mask[y0:y1, x0:x1], 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    cy, cx = np.unravel_index(int(inside.argmax()), inside.shape)
    centre_x, centre_y = x0 + int(cx) - 1, y0 + int(cy) - 1
    if y0 >= h + gap:
        yield top - w // 2, y0 - h - gap
    yield centre_x - w // 2, centre_y - h // 2
    yield centre_x - w // 2, y1 + gap
    yield x0 - w - gap, centre_y - h // 2
    yield x1 + gap, centre_y - h // 2
    for step in (1, 2, 3):
        yield centre_x - w // 2, centre_y - h // 2 - step * (h + gap)
        yield centre_x - w // 2, centre_y - h // 2 + step * (h + gap)


def _chip_text(label: str, score: float) -> str:
    words = " ".join(label.split())
    short = words if len(words) <= _LONGEST_LABEL else words[: _LONGEST_LABEL - 3] + "..."
    return f"{short} {score:.2f}".strip()


@cache
def font(points: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font inside Pillow (Aileron), so that pictures look alike everywhere."""
    return ImageFont.load_default(points)


def _chip(text: str, shade: tuple[int, ...], points: float) -> UInt8[np.ndarray, "th tw 4"]:
    """A rounded tile in `shade` with the text in black or white, whichever is easier to read."""
    letters = font(points)
    left, _, right, _ = letters.getbbox(text)
    pad = round(0.42 * points)
    w, h = int(right - left) + 2 * pad, round(1.5 * points)
    tile = PillowImage.new("RGBA", (w * _FINE, h * _FINE), (*shade, 0))
    corner = round(0.4 * points * _FINE)
    ImageDraw.Draw(tile).rounded_rectangle((0, 0, w * _FINE - 1, h * _FINE - 1), corner, fill=(*shade, 240))
    tile = tile.resize((w, h), PillowImage.Resampling.BOX)
    bright = np.dot(shade, (0.299, 0.587, 0.114)) > 140
    ink = _DARK if bright else _WHITE
    # The height of capitals and figures is the same for every text, so chips line up.
    _, top, _, bottom = letters.getbbox("X0")
    ImageDraw.Draw(tile).text((pad - left, (h - (bottom - top)) / 2 - top), text, font=letters, fill=(*ink, 255))
    return np.asarray(tile)


def _draw_points(canvas: Pixels, prompt: Prompt, unit: float) -> None:
    for (x, y), label in zip(prompt.point_coords, prompt.point_labels, strict=True):
        marker = _marker(bool(label), unit)
        _stamp(canvas, marker, round(float(x)) - marker.shape[1] // 2, round(float(y)) - marker.shape[0] // 2)


@cache
def _marker(positive: bool, unit: float) -> UInt8[np.ndarray, "th tw 4"]:
    """A green disk with a plus or a red one with a minus, ringed in white: told apart without colour too."""
    side = 2 * round(6.5 * unit) + 1
    fine = side * _FINE
    middle, shade = (fine - 1) / 2, _GREEN if positive else _RED
    tile = PillowImage.new("RGBA", (fine, fine), (*_DARK, 0))
    pen = ImageDraw.Draw(tile)
    for radius, fill in ((1.0, (*_DARK, 110)), (0.92, (*_WHITE, 255)), (0.72, (*shade, 255))):
        reach = middle * radius
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=fill)
    arm, thick = middle * 0.4, middle * 0.11
    pen.rectangle((middle - arm, middle - thick, middle + arm, middle + thick), fill=(*_WHITE, 255))
    if positive:
        pen.rectangle((middle - thick, middle - arm, middle + thick, middle + arm), fill=(*_WHITE, 255))
    return np.asarray(tile.resize((side, side), PillowImage.Resampling.BOX))


def _draw_box(canvas: Pixels, prompt: Prompt, unit: float) -> None:
    """A line of white and dark dashes, seen on any ground, just inside the box."""
    if prompt.box_coords is None:
        return
    thick, dash = max(1, round(1.2 * unit)), max(2, round(6 * unit))
    x0, y0, x1, y1 = (round(side) for side in prompt.box_coords)
    part = canvas[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    x, y = x + max(x0, 0), y + max(y0, 0)
    across = (y < y0 + thick) | (y >= y1 - thick)
    along = (x < x0 + thick) | (x >= x1 - thick)
    white = np.where(across, (x - x0) // dash, (y - y0) // dash) % 5 < 3
    part[(across | along) & white] = _WHITE
    part[(across | along) & ~white] = _DARK
