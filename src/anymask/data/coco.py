"""COCO instance files, both ways (format: cocodataset.org, "Data format"; extra fields as in our own data sets).

Reading checks the structure at once and decodes the masks of an image when asked; whatever is wrong is named by file
and annotation id. Writing keeps all but the low-resolution logits: each annotation also has `score`, `label`,
`object_id` (the row's id in its image, where COCO's own `id` counts through the file), `stability`, and of everything
mode `point_coords` and `crop_box` (x y w h) as in SA-1B, of text `measures`, which other readers pass over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.files import read_json, write_json
from anymask.data.images import PathLike
from anymask.data.polygons import from_polygons, polygons_of
from anymask.ops import rle
from anymask.ops.rle import Rle
from anymask.types import Masks, Size

# The category of a mask without a label: no name of anything.
UNNAMED = "object"


@dataclass(frozen=True)
class CocoImage:
    """One image of a set; `extra` holds the fields of the file that have no place here."""

    id: int
    file_name: str
    size: Size
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CocoSet:
    """Images with their annotations; masks are decoded when asked for.

    `sources` are the rows of the file's own list `sources` by name: where images are from and what may be said of them.
    `info` is what the file says of itself.
    """

    file: Path
    images_dir: Path
    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    sources: Mapping[str, Mapping[str, Any]] = field(repr=False)
    annotations: Mapping[int, Sequence[Mapping[str, Any]]] = field(repr=False)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def path(self, image: CocoImage) -> Path:
        """Where the picture lies."""
        return self.images_dir / image.file_name

    def in_train(self, image: CocoImage) -> bool:
        """Whether models may have been trained on its source: yes, unless the file says no."""
        return bool(self.sources.get(image.source, {}).get("in_train", True))

    def masks(self, image: CocoImage) -> Masks:
        """The objects of `image`, labelled with their category."""
        return self._masks(image, iscrowd=False)

    def crowds(self, image: CocoImage) -> Masks:
        """The regions of `image` that hold many objects not told apart (`iscrowd` 1)."""
        return self._masks(image, iscrowd=True)

    def _masks(self, image: CocoImage, iscrowd: bool) -> Masks:
        rows = [row for row in self.annotations.get(image.id, ()) if bool(row.get("iscrowd", 0)) == iscrowd]
        try:
            return _masks_of(rows, image.size, self.categories)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error


def read_coco(annotations: PathLike, images_dir: PathLike | None = None) -> CocoSet:
    """A COCO instance file; `file_name` is relative to `images_dir` (without one, to the folder of the file)."""
    file = Path(annotations)
    content = read_json(file)
    try:
        images = tuple(_image_of(row) for row in _rows(content, "images"))
        categories = {
            _int(row, "id", "category"): _text(row, "name", "category") for row in _rows(content, "categories")
        }
        sources = {str(row.get("name", "")): row for row in _rows({"sources": [], **content}, "sources")}
        by_image = _annotations_of(_rows(content, "annotations"), {image.id for image in images}, categories)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if len(by_image) != len(images):
        raise ValueError(f"{file}: every image must have an id of its own")
    folder = file.parent if images_dir is None else Path(images_dir)
    info = content.get("info")
    return CocoSet(file, folder, images, categories, sources, by_image, info=info if isinstance(info, dict) else {})


def write_coco(
    path: PathLike,
    results: Iterable[tuple[str, Masks]],
    *,
    polygons: bool = False,
    categories: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `to_coco` of the same arguments as a file."""
    write_json(path, to_coco(results, polygons=polygons, categories=categories, settings=settings))


def to_coco(
    results: Iterable[tuple[str, Masks]],
    *,
    polygons: bool = False,
    categories: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A COCO data set of (file name, masks) pairs.

    Masks are compressed RLE, or polygons where these hold a mask exactly. `categories` get the first category ids, so
    that files written one by one can agree; labels that are not among them follow in order of appearance. `settings`
    are what made the masks; they go into `info`.
    """
    ids = {name: i for i, name in enumerate(dict.fromkeys(categories), start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file_name, masks in results:
        h, w = masks.size
        images.append({"id": len(images) + 1, "file_name": file_name, "height": h, "width": w})
        for row in _annotation_rows(masks, polygons):
            category = ids.setdefault(row["label"] or UNNAMED, len(ids) + 1)
            place = {"id": len(annotations) + 1, "image_id": len(images), "category_id": category, "iscrowd": 0}
            annotations.append({**place, **row})
    return {
        "info": {"description": "masks made with anymask", **({} if settings is None else {"settings": settings})},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }


def _annotation_rows(masks: Masks, polygons: bool) -> Iterable[dict[str, Any]]:
    stability, clicks, crops = masks.stability, masks.point_coords, masks.crop_boxes
    for i, row in enumerate(masks.to_coco()):
        row["object_id"] = row.pop("id")
        row["score"] = _shortest(masks.scores[i])
        if masks.measures:
            row["measures"] = {name: _shortest(values[i]) for name, values in masks.measures.items()}
        if stability is not None:
            row["stability"] = _shortest(stability[i])
        if clicks is not None:
            row["point_coords"] = [[_shortest(side) for side in clicks[i]]]
        if crops is not None:
            x0, y0, x1, y1 = crops[i].tolist()
            row["crop_box"] = [x0, y0, x1 - x0, y1 - y0]
        if polygons:
            row["segmentation"] = _as_polygons(row["segmentation"], masks.size)
        yield row


def _shortest(value: Any) -> float:
    """The float with the fewest digits that is this float32 again when read."""
    return float(str(np.float32(value)))


def _as_polygons(packed: Rle, size: Size) -> list[list[float]] | Rle:
    """Polygons where they rasterise to exactly this mask, else the RLE (an empty mask has none)."""
    polygons = polygons_of(rle.decode([packed], size)[0])
    if not polygons or from_polygons(polygons, size) != packed:
        return packed
    return [corners.reshape(-1).tolist() for corners in polygons]


def _masks_of(rows: Sequence[Mapping[str, Any]], size: Size, categories: Mapping[int, str]) -> Masks:
    def all_have(key: str) -> bool:
        return bool(rows) and all(key in row for row in rows)

    own_ids = all("object_id" in row for row in rows)
    stability = np.asarray([_number(row, "stability") for row in rows], np.float32) if all_have("stability") else None
    clicks = np.stack([_vector(row, "point_coords", 2) for row in rows]) if all_have("point_coords") else None
    crops = np.stack([_vector(row, "crop_box", 4) for row in rows]).astype(int) if all_have("crop_box") else None
    if crops is not None:
        crops[:, 2:] += crops[:, :2]
    measures = [_measures(row) for row in rows]
    shared = [name for name in (measures[0] if rows else ()) if all(name in one for one in measures)]
    return Masks.from_rles(
        [_rle_of(row, size) for row in rows],
        size,
        scores=[_number(row, "score") for row in rows],
        labels=[str(row.get("label", categories[row["category_id"]])) for row in rows],
        ids=[_int(row, "object_id", f"annotation {row['id']}") for row in rows] if own_ids else None,
        stability=stability,
        point_coords=clicks,
        crop_boxes=crops,
        measures={name: np.asarray([one[name] for one in measures], np.float32) for name in shared},
    )


def _rle_of(row: Mapping[str, Any], size: Size) -> Rle:
    """The mask of an annotation: polygons, compressed RLE, or an uncompressed list of run lengths."""
    try:
        segmentation = row["segmentation"]
        if isinstance(segmentation, list):
            return from_polygons(_corners_of(segmentation), size)
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"its RLE must have the image's size {list(size)} [h, w], got {segmentation['size']}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return rle.from_run_lengths(counts, size)
        packed = Rle(size=list(size), counts=counts)
        rle.run_lengths(packed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"annotation {row['id']} has a broken segmentation: {error}") from error
    return packed


def _corners_of(polygons: Sequence[Any]) -> list[np.ndarray]:
    if not polygons:
        raise ValueError("it is empty")
    corners = [np.asarray(polygon, np.float64) for polygon in polygons]
    if any(flat.ndim != 1 or flat.size < 6 or flat.size % 2 for flat in corners):
        raise ValueError("each polygon must be a list x, y, x, y, ... of at least 3 points")
    return [flat.reshape(-1, 2) for flat in corners]


def _annotations_of(
    rows: Sequence[Mapping[str, Any]], image_ids: set[int], categories: Mapping[int, str]
) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in image_ids}
    seen: set[int] = set()
    for row in rows:
        row_id = _int(row, "id", "annotation")
        if row_id in seen:
            raise ValueError(f"annotation {row_id} comes twice: every annotation must have an id of its own")
        seen.add(row_id)
        if _int(row, "image_id", f"annotation {row_id}") not in by_image:
            raise ValueError(f"annotation {row_id} has image_id {row['image_id']}, which no image has")
        if _int(row, "category_id", f"annotation {row_id}") not in categories:
            raise ValueError(f"annotation {row_id} has category_id {row['category_id']}, which no category has")
        if not isinstance(row.get("segmentation"), list | dict):
            raise ValueError(f"annotation {row_id} must have a segmentation: polygons or RLE")
        by_image[row["image_id"]].append(row)
    return by_image


def _image_of(row: Mapping[str, Any]) -> CocoImage:
    known = ("id", "file_name", "height", "width", "source")
    image_id = _int(row, "id", "image")
    size = (_int(row, "height", f"image {image_id}"), _int(row, "width", f"image {image_id}"))
    if min(size) < 1:
        raise ValueError(f"image {image_id} must have a height and width above 0, got {size[0]} and {size[1]}")
    extra = {key: value for key, value in row.items() if key not in known}
    return CocoImage(image_id, _text(row, "file_name", f"image {image_id}"), size, str(row.get("source", "")), extra)


def _rows(content: Any, key: str) -> list[Mapping[str, Any]]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"must be a COCO instance file: an object with a list of objects called {key!r}")
    return rows


def _int(row: Mapping[str, Any], key: str, what: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must have a whole number as its {key!r}, got {value!r}")
    return value


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key, 1.0)
    if not isinstance(value, int | float):
        raise ValueError(f"annotation {row['id']} must have a number as its {key!r}, got {value!r}")
    return float(value)


def _measures(row: Mapping[str, Any]) -> dict[str, float]:
    """Further numbers by name."""
    values = row.get("measures", {})
    if not isinstance(values, dict) or not all(isinstance(value, int | float) for value in values.values()):
        raise ValueError(f"annotation {row['id']} must have an object of numbers as its 'measures', got {values!r}")
    return values


def _vector(row: Mapping[str, Any], key: str, n: int) -> np.ndarray:
    """`n` numbers, in lists of any depth."""
    try:
        values = np.asarray(row[key], np.float32).reshape(n)
    except (TypeError, ValueError) as error:
        raise ValueError(f"annotation {row['id']} must have {n} numbers as its {key!r}, got {row[key]!r}") from error
    return values


def _text(row: Mapping[str, Any], key: str, what: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must have a text as its {key!r}, got {value!r}")
    return value
