"""`supervision.Detections`, both ways (package `supervision`, optional)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anymask.types import Masks

if TYPE_CHECKING:
    import supervision


def to_supervision(masks: Masks) -> "supervision.Detections":
    """Boxes, masks, scores as `confidence`, ids as `tracker_id`, labels as `class_name`; all other columns too.

    `class_id` numbers the labels in order of appearance.
    """
    labels = list(dict.fromkeys(masks.labels))
    data: dict[str, Any] = {"class_name": np.asarray(masks.labels, dtype=object)}
    data |= {name: column for name in _EXTRA if (column := getattr(masks, name)) is not None}
    data |= {_MEASURE + name: column for name, column in masks.measures.items()}
    detections: supervision.Detections = _supervision().Detections(
        xyxy=masks.boxes,
        mask=masks.masks,
        confidence=masks.scores,
        class_id=np.asarray([labels.index(label) for label in masks.labels], np.int64),
        tracker_id=masks.ids,
        data=data,
    )
    return detections


def from_supervision(detections: "supervision.Detections") -> Masks:
    """The rows of detections that hold masks; without `class_name` a label is the number of its class."""
    if detections.mask is None:
        raise ValueError("detections must hold masks, got boxes only: segment each box as a prompt")
    dense = np.asarray(detections.mask).astype(bool)
    names: Any = detections.data.get("class_name")
    if names is None:
        names = () if detections.class_id is None else detections.class_id
    ids = detections.tracker_id
    measured = {name: column for name, column in detections.data.items() if name.startswith(_MEASURE)}
    return Masks.from_dense(
        dense,
        scores=detections.confidence,
        labels=[str(name) for name in names] if len(names) == len(dense) else None,
        ids=None if ids is None or (len(ids) and ids.min() < 1) else ids,
        **{name: np.asarray(detections.data[name]) for name in _EXTRA if name in detections.data},
        measures={name.removeprefix(_MEASURE): np.asarray(column) for name, column in measured.items()},
    )


_EXTRA = ("stability", "logits", "point_coords", "crop_boxes")
_MEASURE = "measure "  # before the name of one of `Masks.measures`


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
    return supervision
