"""What every evaluation does with a labelled set: which images of it to take, reading them, and timing what is done."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from anymask.data.coco import CocoImage, CocoSet, read_coco
from anymask.data.images import read_image
from anymask.ops.sampling import stratified
from anymask.types import Image

ALL = "all"  # the source of images that name none

Result = TypeVar("Result")


def read_set(annotations: Path, images: Path, limit: int | None, seed: int) -> tuple[CocoSet, list[CocoImage]]:
    """The set, and the images of it to measure: all, or `limit` of them stratified by source, in the file's order.

    Raises ValueError or FileNotFoundError for what cannot be measured, before anything is.
    """
    dataset = read_coco(annotations, images)
    if not len(dataset):
        raise ValueError(f"{annotations} must hold at least one image, got none")
    entries = [dataset.images[row] for row in stratified([entry.source for entry in dataset.images], limit, seed)]
    _check_files(dataset, entries)
    return dataset, entries


def read_entry(dataset: CocoSet, entry: CocoImage) -> Image:
    """The picture, which must have the size that its annotations are made for."""
    image = read_image(dataset.path(entry))
    if image.size != entry.size:
        raise ValueError(f"{entry.file_name} must be {entry.size} (h, w) as in {dataset.file}, got {image.size}")
    return image


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work` and the seconds it took, including what it left running on a GPU."""
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _check_files(dataset: CocoSet, entries: Sequence[CocoImage]) -> None:
    missing = [entry.file_name for entry in entries if not dataset.path(entry).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(entries)} pictures are not in {dataset.images_dir}: {missing[0]}"
        )
