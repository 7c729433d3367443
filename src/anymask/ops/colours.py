"""Distinct colours for objects, and masks painted with them."""

import numpy as np
from jaxtyping import Bool, UInt8


def palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """`n` colours, each far in hue from those before it (golden-ratio steps, alternating value)."""
    hue = (0.58 + np.arange(n) * 0.618034) % 1.0
    value = np.where(np.arange(n) % 2 == 0, 1.0, 0.82)
    saturation = np.where(np.arange(n) % 3 == 2, 0.65, 0.9)
    channel = (np.asarray([5.0, 3.0, 1.0])[None] + hue[:, None] * 6) % 6
    ramp = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    shades: np.ndarray = np.round(255 * value[:, None] * (1 - saturation[:, None] * ramp))
    return shades.astype(np.uint8)


def paint(masks: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Masks in their colours on black, the largest at the back so that small ones stay visible."""
    canvas = np.zeros((*masks.shape[1:], 3), np.uint8)
    shades = palette(len(masks))
    for row in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        canvas[masks[row]] = shades[row]
    return canvas
