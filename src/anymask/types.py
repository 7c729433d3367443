"""The plain data that flows through anymask: no model, no files.

Units, fixed here once: coordinates are x y in pixels of the original image, origin at its top-left corner, the centre
of the first pixel at (0.5, 0.5); boxes are x0 y0 x1 y1 with the end exclusive; sizes are (h, w); masks are bool;
raw scores are `logits`. COCO's own structures keep COCO's x y w h.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from anymask.ops import colours, rle
from anymask.ops.rle import Rle

Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Image:
    """An RGB picture, upright. `name` is the file stem results are saved under."""

    pixels: UInt8[np.ndarray, "h w 3"]
    name: str = "image"

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
            raise ValueError(f"an Image must be RGB uint8 (h, w, 3), got {dtype} {shape}: use anymask.read_image")

    @property
    def size(self) -> Size:
        """(h, w) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, eq=False)
class Concept:
    """Something learned of one thing, for the model it was made with.

    `token_embeddings` stand where a word would stand; without any the name itself does. `thresholds` say from when on
    a find counts, by the model or detector whose scores they are for. `base_digest` tells the weights that read the
    vectors from others of that name.
    """

    name: str
    base_model: str
    token_embeddings: Float[np.ndarray, "n d"] | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    base_digest: str = ""

    def __post_init__(self) -> None:
        vectors = self.token_embeddings
        if vectors is not None and (vectors.ndim != 2 or 0 in vectors.shape):
            raise ValueError(f"token_embeddings must be (n, d) with n, d > 0, got {vectors.shape}")
        if vectors is not None and not np.isfinite(vectors).all():
            raise ValueError(f"token_embeddings of the concept {self.name!r} must be finite, got NaN or infinity")
        if vectors is None and not (self.thresholds and self.name.strip()):
            raise ValueError("a Concept must have token_embeddings, or a name and thresholds for it: got neither")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds.values()):
            raise ValueError(f"thresholds must be from 0 to 1, got {dict(self.thresholds)}")


@dataclass(frozen=True, eq=False)
class Exemplar:
    """One shown object: a mask or a box in `image` (None: the image that is being segmented)."""

    image: Image | None = None
    mask: Bool[np.ndarray, "h w"] | None = None
    box: Box | None = None
    positive: bool = True

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.box is None):
            raise ValueError("an Exemplar is shown by a mask or by a box: give exactly one of them")


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the user means by one object, or by one name: build it with the class methods, combine with `+`.

    `mask_input` is a bool mask (h, w) of the original image, or the float low-resolution logits of an earlier result.
    """

    point_coords: Float[np.ndarray, "n 2"] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    point_labels: Int[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    box_coords: Box | None = None
    mask_input: np.ndarray | None = None
    name: str | None = None
    negative_names: tuple[str, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    learned: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        if self.point_coords.ndim != 2 or self.point_coords.shape[1] != 2:
            raise ValueError(f"point_coords must be (n, 2), x y of each point, got {self.point_coords.shape}")
        if len(self.point_labels) != len(self.point_coords):
            raise ValueError(
                f"every point needs a label: got {len(self.point_coords)} points and {len(self.point_labels)} labels"
            )
        if not np.isin(self.point_labels, (0, 1)).all():
            raise ValueError(f"point labels must be 1 (object) or 0 (background), got {self.point_labels.tolist()}")
        if not np.isfinite(self.point_coords).all():
            raise ValueError(f"point coordinates must be finite, got {self.point_coords.tolist()}")
        if self.box_coords is not None:
            _check_box(self.box_coords)
        if self.name is not None and not self.name.strip():
            raise ValueError("a text prompt must name something, got an empty text")
        _check_learned(self.name, self.learned)

    @classmethod
    def point(cls, x: float, y: float, label: int = 1) -> "Prompt":
        """One click: label 1 on the object, 0 on the background."""
        return cls.points([(x, y)], [label])

    @classmethod
    def points(cls, coords: Sequence[Sequence[float]] | np.ndarray, labels: Sequence[int] | None = None) -> "Prompt":
        """Many clicks on one object, all positive unless `labels` says otherwise."""
        xy = np.asarray(coords, dtype=np.float32).reshape(-1, 2)
        return cls(point_coords=xy, point_labels=np.asarray([1] * len(xy) if labels is None else labels, np.int64))

    @classmethod
    def box(cls, x0: float, y0: float, x1: float, y1: float) -> "Prompt":
        """A box around the object, end exclusive."""
        return cls(box_coords=(float(x0), float(y0), float(x1), float(y1)))

    @classmethod
    def mask(cls, mask: np.ndarray) -> "Prompt":
        """A rough bool mask (h, w) of the original image, or low-resolution logits (float) of an earlier result."""
        if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.floating)):
            raise ValueError(f"mask must be bool (h, w) or float logits (h, w), got {mask.dtype} {mask.shape}")
        return cls(mask_input=mask)

    @classmethod
    def text(cls, name: str, negative_names: Sequence[str] = (), concepts: Sequence[Concept] = ()) -> "Prompt":
        """All instances of `name`, none of `negative_names`; "a <polyp> on the left" holds the concept `polyp`."""
        return cls(name=name, negative_names=tuple(negative_names), learned=tuple(concepts))

    @classmethod
    def concept(cls, *concepts: Concept) -> "Prompt":
        """All instances of something learned; of several concepts the vectors stand one after another."""
        return cls(learned=concepts)

    @classmethod
    def refine(cls, result: "Masks") -> "Prompt":
        """The low-resolution logits of one earlier result, to be corrected by further points."""
        if len(result) != 1 or result.logits is None:
            raise ValueError(f"refine needs one row with logits: got {len(result)} rows; pass masks[i] of a result")
        return cls(mask_input=result.logits[0])

    @property
    def title(self) -> str:
        """What to call the thing: its name, or those of its concepts; empty where there is none."""
        if self.name is None:
            return " ".join(one.name for one in self.learned)
        return _AMID.sub(r"\1", self.name) if self.embedded else self.name

    @property
    def embedded(self) -> "tuple[Concept, ...]":
        """The concepts whose learned vectors stand in the phrase."""
        return tuple(one for one in self.learned if one.token_embeddings is not None)

    @property
    def phrase(self) -> "tuple[str | Concept, ...]":
        """What a model reads, in order: words, and the concepts whose vectors stand among them."""
        by_name = {one.name: one for one in self.embedded}
        if not by_name or self.name is None:
            return tuple(by_name.values()) or ((self.title,) if self.title else ())
        parts = [by_name.get(part) if i % 2 else part.strip() for i, part in enumerate(_AMID.split(self.name))]
        return tuple(part for part in parts if part)

    @property
    def thresholds(self) -> Mapping[str, float]:
        """From when on a find counts, where that was learned for the whole phrase and not for a part of it."""
        whole = [one for one in self.learned if self.name in (None, one.name)]
        return whole[0].thresholds if len(whole) == 1 else {}

    def __add__(self, other: "Prompt") -> "Prompt":
        """Both prompts together, for the same object."""
        for slot in ("box_coords", "mask_input", "name"):
            if getattr(self, slot) is not None and getattr(other, slot) is not None:
                raise ValueError(f"one object has one {slot}: to prompt several objects pass a list of Prompts")
        return Prompt(
            point_coords=np.concatenate([self.point_coords, other.point_coords]),
            point_labels=np.concatenate([self.point_labels, other.point_labels]),
            box_coords=other.box_coords if self.box_coords is None else self.box_coords,
            mask_input=other.mask_input if self.mask_input is None else self.mask_input,
            name=other.name if self.name is None else self.name,
            negative_names=self.negative_names + other.negative_names,
            exemplars=self.exemplars + other.exemplars,
            learned=self.learned + other.learned,
        )

    @property
    def is_spatial(self) -> bool:
        """Whether a point, box or mask says where the object is."""
        return len(self.point_coords) > 0 or self.box_coords is not None or self.mask_input is not None

    @property
    def is_semantic(self) -> bool:
        """Whether a text, an exemplar or a learned concept says what the object is."""
        return self.is_named or bool(self.exemplars)

    @property
    def is_named(self) -> bool:
        """Whether words or a learned concept say what the object is."""
        return self.name is not None or bool(self.learned)


@dataclass(frozen=True)
class Frame:
    """How a part of the original image lies in a model's input.

    The pixels of `crop_box` fill the top-left `content_size` of the `input_size` canvas; the rest is padding.
    SAM 1 keeps the aspect ratio and pads, SAM 2, SAM 3 and pocket stretch. `through_input`: masks are brought to the
    input first and from there to the image, as SAM 1 does; the others do it in one go.
    """

    size: Size
    input_size: Size
    content_size: Size
    crop_box: tuple[int, int, int, int]
    through_input: bool = False

    @classmethod
    def stretched(cls, size: Size, input_size: Size, crop_box: tuple[int, int, int, int] | None = None) -> "Frame":
        """The whole image (or `crop_box` of it) stretched over the input."""
        return cls(size, input_size, input_size, crop_box or (0, 0, size[1], size[0]))

    @classmethod
    def padded(cls, size: Size, input_size: Size, crop_box: tuple[int, int, int, int] | None = None) -> "Frame":
        """As large as the input allows, then padded at the right or bottom (SAM 1, `ResizeLongestSide`)."""
        x0, y0, x1, y1 = crop_box or (0, 0, size[1], size[0])
        scale = min(input_size[0] / (y1 - y0), input_size[1] / (x1 - x0))
        content = (max(1, int((y1 - y0) * scale + 0.5)), max(1, int((x1 - x0) * scale + 0.5)))
        return cls(size, input_size, content, (x0, y0, x1, y1), through_input=True)

    @property
    def scale(self) -> tuple[float, float]:
        """Model pixels per original pixel, in x and in y."""
        x0, y0, x1, y1 = self.crop_box
        return self.content_size[1] / (x1 - x0), self.content_size[0] / (y1 - y0)

    def to_model(self, coords: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Original x y to model x y."""
        origin = np.asarray(self.crop_box[:2], np.float32)
        return ((coords - origin) * np.asarray(self.scale, np.float32)).astype(np.float32)

    def to_original(self, coords: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Model x y to original x y."""
        origin = np.asarray(self.crop_box[:2], np.float32)
        return (coords / np.asarray(self.scale, np.float32) + origin).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Features:
    """What a model's encoder returns for one image: opaque tensors and where they lie in the image."""

    model: str
    frame: Frame
    tensors: Mapping[str, Any]


_OPTIONAL_COLUMNS = ("stability", "logits", "point_coords", "crop_boxes")


@dataclass(frozen=True, eq=False)
class Masks:
    """The result type: one row per object, dense or RLE inside. Build with `from_dense` or `from_rles`.

    `scores` are the model's predicted IoU or confidence (0 to 1); `ids` are positive, rows of one object (multimask)
    share theirs; `logits` are low-resolution mask logits in the model's frame, for `Prompt.refine`. Of everything mode,
    `point_coords` are the clicks that the masks answer and `crop_boxes` (x0 y0 x1 y1) the parts they were found in.
    Of text, `measures` are further numbers of each row by name (what its score is made of), `candidates` masks that
    were weighed, best first, and `made_by` says in plain JSON what found the masks, in what time, and what to know.
    """

    size: Size
    scores: Float[np.ndarray, "n"]
    labels: tuple[str, ...]
    ids: Int[np.ndarray, "n"]
    stability: Float[np.ndarray, "n"] | None = None
    logits: Float[np.ndarray, "n lh lw"] | None = None
    point_coords: Float[np.ndarray, "n 2"] | None = None
    crop_boxes: Int[np.ndarray, "n 4"] | None = None
    measures: Mapping[str, Float[np.ndarray, "n"]] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict, repr=False)
    candidates: "Masks | None" = field(default=None, repr=False)
    dense: Bool[np.ndarray, "n h w"] | None = field(default=None, repr=False)
    packed: tuple[Rle, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        held = self.packed if self.dense is None else self.dense
        if held is None:
            raise TypeError("Masks are built with Masks.from_dense(...) or Masks.from_rles(...)")
        n = len(held)
        columns: dict[str, Sized | None] = {"scores": self.scores, "labels": self.labels, "ids": self.ids}
        columns |= {name: getattr(self, name) for name in _OPTIONAL_COLUMNS} | dict(self.measures)
        for column, values in columns.items():
            if values is not None and len(values) != n:
                raise ValueError(f"{column} must have a value for each of the {n} masks, got {len(values)}")
        if n and int(self.ids.min()) < 1:
            raise ValueError(f"ids must be positive (0 is the background of a label map), got {self.ids.min()}")

    @classmethod
    def from_dense(cls, masks: Bool[np.ndarray, "n h w"], **columns: Any) -> "Masks":
        """From bool masks; columns as in the class, each optional."""
        if masks.ndim != 3 or masks.dtype != bool:
            raise ValueError(f"masks must be bool (n, h, w), got {masks.dtype} {masks.shape}")
        size = (masks.shape[1], masks.shape[2])
        return cls(size=size, dense=masks, **_columns(len(masks), **columns))

    @classmethod
    def from_rles(cls, rles: Sequence[Rle], size: Size, **columns: Any) -> "Masks":
        """From compressed COCO RLEs, all of `size` (h, w)."""
        for one in rles:
            if tuple(one["size"]) != tuple(size):
                raise ValueError(f"every RLE must have size {list(size)} [h, w], got {one['size']}")
        return cls(size=size, packed=tuple(rles), **_columns(len(rles), **columns))

    @classmethod
    def empty(cls, size: Size) -> "Masks":
        """No object found in an image of `size`."""
        return cls.from_rles([], size)

    @classmethod
    def concat(cls, parts: Sequence["Masks"]) -> "Masks":
        """The rows of all `parts`, which must be of one size; a column that not all rows have is left out.

        Of `made_by` the later part says what both say; candidates of all parts go together, the highest score first.
        """
        if not parts or len({part.size for part in parts}) != 1:
            raise ValueError(f"concat needs results of one size, got {[part.size for part in parts]}")
        optional: dict[str, np.ndarray] = {}
        for name in _OPTIONAL_COLUMNS:
            values = [getattr(part, name) for part in parts if len(part)]
            if len({None if value is None else value.shape[1:] for value in values}) == 1 and values[0] is not None:
                optional[name] = np.concatenate(values)
        weighed = [part.candidates for part in parts if part.candidates is not None]
        return cls.from_rles(
            [one for part in parts for one in part.rles],
            parts[0].size,
            scores=np.concatenate([part.scores for part in parts]),
            labels=tuple(label for part in parts for label in part.labels),
            ids=np.concatenate([part.ids for part in parts]),
            **optional,
            measures=_joined_measures([part for part in parts if len(part)]),
            made_by={key: value for part in parts for key, value in part.made_by.items()},
            candidates=_sorted(cls.concat(weighed)) if len(weighed) > 1 else next(iter(weighed), None),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator["Masks"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> "Masks":
        """Rows by index, slice, list of indices or bool array, always as Masks."""
        index = np.arange(len(self))[rows].reshape(-1)
        return replace(
            self,
            scores=self.scores[index],
            labels=tuple(self.labels[i] for i in index),
            ids=self.ids[index],
            **{name: values[index] for name in _OPTIONAL_COLUMNS if (values := getattr(self, name)) is not None},
            measures={name: values[index] for name, values in self.measures.items()},
            dense=None if self.dense is None else self.dense[index],
            packed=None if self.packed is None else tuple(self.packed[i] for i in index),
        )

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """Dense masks (decoded on each call when RLE is held)."""
        return rle.decode(self.packed or (), self.size) if self.dense is None else self.dense

    @property
    def rles(self) -> tuple[Rle, ...]:
        """Compressed COCO RLEs (encoded on each call when dense masks are held)."""
        return self.packed or () if self.dense is None else rle.encode(self.dense)

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """Tight boxes x0 y0 x1 y1; 0 0 0 0 for an empty mask."""
        return rle.boxes(self.rles)

    @property
    def areas(self) -> Int[np.ndarray, "n"]:
        """Pixels in each mask."""
        return rle.areas(self.rles)

    def rows_named(self, name: str) -> Bool[np.ndarray, "n"]:
        """Which rows have this label."""
        return np.asarray([label == name for label in self.labels], bool)

    def compact(self) -> "Masks":
        """The same rows held as RLE."""
        return replace(self, dense=None, packed=self.rles)

    def best(self) -> "Masks":
        """For each id its row of the highest score, in order of first appearance."""
        first_seen = dict.fromkeys(self.ids.tolist())
        rows = {i: max(np.flatnonzero(self.ids == i), key=lambda row: self.scores[row]) for i in first_seen}
        return self[np.asarray([rows[i] for i in first_seen], dtype=np.int64)]

    def to_coco(self) -> list[dict[str, Any]]:
        """One dict per row: segmentation (RLE), area, bbox (COCO x y w h), score, label, id, measures if any."""
        held = self.compact()
        xywh = held.boxes.copy()
        xywh[:, 2:] -= xywh[:, :2]
        return [
            {
                "segmentation": one,
                "area": int(area),
                "bbox": [float(side) for side in box],
                "score": round(float(score), 6),
                "label": label,
                "id": int(row_id),
            }
            | ({"measures": measured} if measured else {})
            for one, area, box, score, label, row_id, measured in zip(
                held.rles, held.areas, xywh, held.scores, held.labels, held.ids, self._measured(), strict=True
            )
        ]

    def _measured(self) -> list[dict[str, float]]:
        """The measures of each row, rounded."""
        return [
            {name: round(float(values[row]), 6) for name, values in self.measures.items()} for row in range(len(self))
        ]

    def _repr_html_(self) -> str:
        """A picture and a table, for notebooks."""
        from PIL import Image as PillowImage

        buffer = io.BytesIO()
        top = rle.topmost(self.rles, self.scores, self.size)
        PillowImage.fromarray(colours.paint(top, len(self))).save(buffer, "PNG")
        picture = base64.b64encode(buffer.getvalue()).decode("ascii")
        rows = "".join(
            f"<tr><td>{i}</td><td>{_escape(label)}</td><td>{score:.3f}</td><td>{area}</td></tr>"
            for i, label, score, area in zip(self.ids, self.labels, self.scores, self.areas, strict=True)
        )
        head = "<tr><th>id</th><th>label</th><th>score</th><th>area</th></tr>"
        return f'<img style="max-width:480px" src="data:image/png;base64,{picture}"><table>{head}{rows}</table>'


@dataclass(frozen=True)
class Report:
    """Numbers with all that is needed to read them: what was measured, how, with what, where."""

    title: str
    metrics: Mapping[str, float | int | None]
    settings: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


_AMID = re.compile(r"<([^<>]+)>")  # the name of a concept amid words


def _check_learned(name: str | None, learned: Sequence[Concept]) -> None:
    """Every concept with vectors is in the phrase, once, and what the phrase speaks of is given."""
    given = [one.name for one in learned if one.token_embeddings is not None]
    if len(set(given)) < len(given):
        raise ValueError(f"concepts of one phrase must have names of their own, got {', '.join(given)}")
    spoken = _AMID.findall(name or "")
    if unknown := [one for one in spoken if one not in given]:
        raise ValueError(f"the text {name!r} speaks of <{unknown[0]}>: give the concept of that name with it")
    if name is not None and (unused := [one for one in given if one not in spoken]):
        raise ValueError(f"the concept {unused[0]!r} has no place in the text {name!r}: write <{unused[0]}> into it")


def _check_box(box: Box) -> None:
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0:
        raise ValueError(f"a box must be x0,y0,x1,y1 with x1 > x0 and y1 > y0, got {x0:g},{y0:g},{x1:g},{y1:g}")


def _columns(n: int, **columns: Any) -> dict[str, Any]:
    """Columns of Masks with their defaults: score 1, no label, ids 1 to n."""
    scores, labels, ids = columns.pop("scores", None), columns.pop("labels", None), columns.pop("ids", None)
    return {
        "scores": np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32),
        "labels": ("",) * n if labels is None else tuple(labels),
        "ids": np.arange(1, n + 1) if ids is None else np.asarray(ids, np.int64),
        **columns,
    }


def _joined_measures(parts: Sequence[Masks]) -> dict[str, np.ndarray]:
    """Those that all parts have."""
    names = [name for name in (parts[0].measures if parts else ()) if all(name in part.measures for part in parts)]
    return {name: np.concatenate([part.measures[name] for part in parts]) for name in names}


def _sorted(masks: Masks) -> Masks:
    return masks[np.argsort(-masks.scores, kind="stable")]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
