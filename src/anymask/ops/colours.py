"""Distinct colours for objects, and masks painted with them."""

import numpy as np
from jaxtyping import Float, Int, UInt8

# Colours that are told apart on a photo and beside each other.
_WHEEL = np.asarray(
    [
        (25, 118, 210), (244, 140, 6), (31, 160, 85), (230, 57, 70), (155, 81, 224), (255, 209, 0),
        (0, 180, 170), (241, 91, 181), (138, 201, 38), (92, 75, 219), (255, 128, 102), (0, 187, 249),
    ],
    np.float64,
)  # fmt: skip
# Colours of neighbours this far apart need not be farther; a colour and the photo under it may be a little nearer.
_ENOUGH, _GROUND = 260.0, 1.4


def palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """`n` colours, each far in hue from those before it (golden-ratio steps, alternating value)."""
    hue = (0.58 + np.arange(n) * 0.618034) % 1.0
    value = np.where(np.arange(n) % 2 == 0, 1.0, 0.82)
    saturation = np.where(np.arange(n) % 3 == 2, 0.65, 0.9)
    channel = (np.asarray([5.0, 3.0, 1.0])[None] + hue[:, None] * 6) % 6
    ramp = np.clip(np.minimum(channel, 4 - channel), 0, 1)
    shades: np.ndarray = np.round(255 * value[:, None] * (1 - saturation[:, None] * ramp))
    return shades.astype(np.uint8)


def apart(neighbours: Int[np.ndarray, "k 2"], grounds: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Colours of a wheel of twelve, unlike where two are neighbours (pairs of indices), and unlike what each covers.

    The first choose first; of colours unlike enough the one used least is taken.
    """
    beside: list[list[int]] = [[] for _ in grounds]
    for one, other in neighbours.tolist():
        beside[one].append(other)
        beside[other].append(one)
    between, from_ground = _unlike(_WHEEL, _WHEEL), _unlike(_WHEEL, grounds)
    chosen, used = np.full(len(grounds), -1), np.zeros(len(_WHEEL))
    for i in range(len(grounds)):
        taken = chosen[beside[i]]
        nearest = between[:, taken[taken >= 0]].min(axis=1, initial=_ENOUGH)
        score = np.minimum(nearest, _GROUND * from_ground[:, i]) - 30 * used / max(used.max(), 1)
        chosen[i] = int(np.argmax(score))
        used[chosen[i]] += 1
    return np.asarray(_WHEEL[chosen], np.uint8)


def _unlike(some: Float[np.ndarray, "a 3"], others: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "a b"]:
    """How far apart colours are, red, green and blue weighed by how well the eye tells them apart."""
    distance: np.ndarray = np.sqrt((some[:, None] - others[None]) ** 2 @ np.asarray([2.0, 4.0, 3.0]))
    return distance


def paint(top: Int[np.ndarray, "h w"], n: int) -> UInt8[np.ndarray, "h w 3"]:
    """`n` masks in their colours on black, where they are on top (`rle.topmost`)."""
    table = np.concatenate([np.zeros((1, 3), np.uint8), palette(n)])
    return np.asarray(table[top])
