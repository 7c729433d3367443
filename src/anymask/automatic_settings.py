"""The settings of everything mode, without what computes it: `anymask everything --help` waits for no PyTorch.

Names and defaults are those of `SamAutomaticMaskGenerator` (segment-anything, sam2); transformers' names are aliases.
"""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, TypedDict

import numpy as np

from anymask.tiling import settled_overlap

ALIASES = {
    "points_per_crop": "points_per_side",
    "crops_n_layers": "crop_n_layers",
    "crops_nms_thresh": "crop_nms_thresh",
}


@dataclass(frozen=True)
class _Range:
    """What a number may be; `whole` of counts, `open` where `high` itself is not allowed."""

    low: float = 0
    high: float = 1
    whole: bool = False
    open: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.high == inf:
            return f"{kind}, {self.low} or more"
        return f"{kind} from {self.low} to {'less than ' if self.open else ''}{self.high}"

    def __contains__(self, value: Any) -> bool:
        kinds: Any = (int, np.integer) if self.whole else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, kinds) or not np.isfinite(value):
            return False
        return bool(self.low <= value <= self.high) and not (self.open and value == self.high)


RANGES = {
    "points_per_side": _Range(1, 1024, whole=True),  # a million clicks
    "points_per_batch": _Range(1, inf, whole=True),
    "pred_iou_thresh": _Range(),
    "stability_score_thresh": _Range(),
    "stability_score_offset": _Range(0, inf),
    "box_nms_thresh": _Range(),
    "crop_n_layers": _Range(0, 6, whole=True),  # the sixth has 4,096 crops
    "crop_nms_thresh": _Range(),
    "crop_overlap_ratio": _Range(open=True),
    "crop_n_points_downscale_factor": _Range(1, inf, whole=True),
    "min_mask_region_area": _Range(0, inf, whole=True),
    "tile": _Range(1, inf, whole=True),
    "overlap": _Range(0, inf, whole=True),
}


@dataclass(frozen=True)
class AutomaticSettings:
    """The grid, and what survives of its answers; None is the value that suits the model's family."""

    points_per_side: int | None = field(default=None, metadata={"help": "points along a side of the grid of clicks"})
    points_per_batch: int | None = field(default=None, metadata={"help": "clicks decoded at once; masks do not change"})
    pred_iou_thresh: float | None = field(default=None, metadata={"help": "least predicted IoU of a mask"})
    stability_score_thresh: float | None = field(default=None, metadata={"help": "least stability of a mask"})
    stability_score_offset: float = field(default=1.0, metadata={"help": "of the logits, up and down, for stability"})
    box_nms_thresh: float = field(default=0.7, metadata={"help": "IoU of boxes in a crop from which one mask stays"})
    crop_n_layers: int = field(default=0, metadata={"help": "layers of crops: 1 adds 4 crops, 2 adds 4 + 16"})
    crop_nms_thresh: float = field(default=0.7, metadata={"help": "IoU of boxes between crops, smaller crops first"})
    crop_overlap_ratio: float = field(default=512 / 1500, metadata={"help": "overlap of crops, of the shorter side"})
    crop_n_points_downscale_factor: int = field(
        default=1, metadata={"help": "layer n has so many to the power of n times fewer points a side"}
    )
    min_mask_region_area: int = field(default=0, metadata={"help": "fill holes, drop islands of fewer pixels"})
    multimask_output: bool = field(default=True, metadata={"help": "three masks a click, not one"})
    exact: bool = field(default=False, metadata={"help": "every step of the reference, at full resolution"})
    tile: int | None = field(default=None, metadata={"help": "search big images in squares of this side, too"})
    overlap: int | None = field(
        default=None, metadata={"help": "of tiles in pixels (an eighth of --tile if not given)"}
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value, allowed = getattr(self, one.name), RANGES.get(one.name)
            if allowed and value not in allowed and not (value is None and one.default is None):
                raise ValueError(f"{one.name} must be {allowed}, got {value!r}")
        settled_overlap(self.tile, self.overlap)
        if self.tile is not None and self.crop_n_layers:
            raise ValueError("tile and crop_n_layers both cut the image: ask for one of them")


class Names(TypedDict, total=False):
    """What `everything` takes: the fields of `AutomaticSettings`, and transformers' names for some."""

    points_per_side: int | None
    points_per_batch: int | None
    pred_iou_thresh: float | None
    stability_score_thresh: float | None
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    multimask_output: bool
    exact: bool
    tile: int | None
    overlap: int | None
    points_per_crop: int | None
    crops_n_layers: int
    crops_nms_thresh: float


def by_our_names(names: Names) -> dict[str, Any]:
    """The fields of `AutomaticSettings` that are meant. Raises TypeError for one given twice."""
    given: dict[str, Any] = {}
    for name, value in names.items():
        own = ALIASES.get(name, name)
        if own in given:
            other = next(alias for alias, meant in ALIASES.items() if meant == own)
            raise TypeError(f"{own} and {other} are one setting: give one of them")
        given[own] = value
    return given
