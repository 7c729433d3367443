"""The annotated pictures that the pocket model learns from, and which names are known to be absent in each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymask.data.coco import UNNAMED
from anymask.data.files import read_json
from anymask.ops import rle

_ANIMALS = ("animals_roboflow", "feral_cats", "pets_128")
_PHOTOS = ("coco_full", "coco_person_partial", "voc2012aug_animals", "voc2007seg")
# Names of the sources at the right are hardly ever in a picture of the source at the left: absent, exhaustive or not.
# People, and so clothes, may be anywhere but under a microscope.
FOREIGN: dict[str, tuple[str, ...]] = {
    "nuclei_dsb2018": (*_ANIMALS, "clothing_ccp", "facade_roboflow", "coco_full", "voc2012aug_animals"),
    "clothing_ccp": (*_ANIMALS, "nuclei_dsb2018"),
    "facade_roboflow": (*_ANIMALS, "nuclei_dsb2018"),
    **{source: ("nuclei_dsb2018",) for source in (*_ANIMALS, *_PHOTOS)},
}


@dataclass(frozen=True)
class Picture:
    """One annotated image: its JPEG file, RLEs with names, and which names are known to be absent."""

    path: Path
    source: str
    rles: tuple[rle.Rle, ...]
    names: tuple[str, ...]
    absent: tuple[str, ...]
    exhaustive: bool


def read_pictures(images: Path, annotations: Path, exclude_sources: Sequence[str] = ()) -> list[Picture]:
    """The annotated images of a COCO-format set with the optional fields of our data (source, text_exhaustive)."""
    document = read_json(annotations)
    if missing := [key for key in ("images", "annotations", "categories") if key not in document]:
        raise ValueError(f"{annotations} is no COCO file: it has no {', '.join(missing)}")
    names = {category["id"]: category["name"] for category in document["categories"]}
    sources = {source["name"]: source for source in document.get("sources", [])}
    known = {image.get("source", "") for image in document["images"]}
    if unknown := sorted(set(exclude_sources) - known):
        raise ValueError(
            f"sources to leave out must be in {annotations}: {', '.join(unknown)} is none of {sorted(known)}"
        )
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd", 0):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    kept = [i for i in document["images"] if i["id"] in by_image and i.get("source", "") not in exclude_sources]
    return _with_foreign_names([_picture(images, image, by_image[image["id"]], names, sources) for image in kept])


def _with_foreign_names(pictures: list[Picture]) -> list[Picture]:
    """The same pictures, with the names of their foreign sources counted as absent."""
    known: dict[str, set[str]] = {}
    for picture in pictures:
        known.setdefault(picture.source, set()).update({*picture.names} - {UNNAMED})
    foreign = {
        source: {name for other in FOREIGN.get(source, ()) for name in known.get(other, ())} - own
        for source, own in known.items()
    }
    return [replace(p, absent=tuple(sorted({*p.absent, *foreign[p.source]}))) for p in pictures]


def _picture(
    folder: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    names: dict[int, str],
    sources: dict[str, Any],
) -> Picture:
    source = sources.get(image.get("source", ""), {})
    present = tuple(names[a["category_id"]] for a in annotations)
    exhaustive = bool(source.get("text_exhaustive", False))
    hidden = {*present, *image.get("crowd_categories", ()), UNNAMED}
    absent = tuple(name for name in source.get("names", ()) if name not in hidden) if exhaustive else ()
    encoded = tuple(a["segmentation"] for a in annotations)
    return Picture(folder / image["file_name"], image.get("source", ""), encoded, present, absent, exhaustive)
