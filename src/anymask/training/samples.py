"""Training samples of the pocket model: augmented crops with soft masks, clicks, boxes and names.

A sample is a function of (seed, index) alone, so a resumed run sees exactly the samples that it has not seen yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch.utils.data import Dataset

from anymask.data.coco import UNNAMED
from anymask.ops import clicks, rle
from anymask.training import vocabulary
from anymask.training.crops import REGION, Crop, interpolation, paste, random_crop_box, recolour, soft
from anymask.training.pictures import Picture
from anymask.training.regions import find_regions

TRIES = 500  # crops drawn before a set counts as empty


@dataclass(frozen=True)
class SampleSettings:
    """What a sample holds. `side` is the crop in pixels, masks are kept at a quarter of it."""

    side: int = 384
    objects: int = 6
    names: int = 4
    whole_image: float = 0.35
    min_crop: float = 0.3  # smallest side of a crop, as a share of the image's
    paste: float = 0.25
    regions: float = 0.2  # share of objects that are unlabelled regions, given by a box
    synonyms: float = 0.25  # share of names asked by another word, where there is one
    groups: float = 0.15  # share of names asked by their group ("animal"), where there is one
    seed: int = 0


class PocketSamples(Dataset[dict[str, torch.Tensor]]):
    """Sample `i` is drawn with the seed (seed, i); images with many objects come more often (square root)."""

    def __init__(self, pictures: Sequence[Picture], phrases: Mapping[str, list[int]], settings: SampleSettings) -> None:
        self.pictures, self.phrases, self.settings = pictures, phrases, settings
        weights = np.sqrt([min(len(picture.rles), 40) for picture in pictures])
        self.weights = weights / weights.sum()
        self.bytes = [np.fromfile(picture.path, np.uint8) for picture in pictures]
        self._regions: dict[int, tuple[rle.Rle, ...]] = {}

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample as tensors.

        pixels [3 s s] uint8; targets [m q q] with points, boxes, names and "only_boxed" (a region: a click or a name
        would be no fair question); unions [k q q] of the names asked, with their phrases and whether they are present.
        """
        rng = np.random.default_rng((self.settings.seed, index))
        cv2.setNumThreads(0)
        crop = next((one for one in (self._crop(rng, self._draw_picture(rng)) for _ in range(TRIES)) if one), None)
        if crop is None:
            raise ValueError(f"no object of the set is large enough to be seen at {self.settings.side} pixels")
        if rng.random() < self.settings.paste:
            donor = self._crop(rng, self._draw_picture(rng))
            crop = crop if donor is None else paste(rng, crop, donor)
        return self._to_tensors(rng, crop)

    def _draw_picture(self, rng: np.random.Generator) -> int:
        return int(rng.choice(len(self.pictures), p=self.weights))

    def _crop(self, rng: np.random.Generator, row: int) -> Crop | None:
        """A random crop stretched to the square input; None if no object is left in it."""
        picture, side = self.pictures[row], self.settings.side
        pixels = self._read(row)
        h, w = pixels.shape[:2]
        masks = rle.decode(picture.rles, (h, w))
        labelled = len(masks)
        masks = np.concatenate([masks, self._find_regions(row, pixels, masks)]).astype(np.uint8)
        if rng.random() >= self.settings.whole_image:
            x0, y0, x1, y1 = random_crop_box(rng, (h, w), self.settings.min_crop)
            pixels, masks = pixels[y0:y1, x0:x1], masks[:, y0:y1, x0:x1]
        if rng.random() < 0.5:
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
        whole = cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=interpolation(pixels.shape, side))
        targets = np.stack([soft(mask, side // 4) for mask in masks])
        if not (targets[:labelled].sum(axis=(1, 2)) >= 2).any():
            return None
        names = [*picture.names, *[REGION] * (len(masks) - labelled)]
        return Crop(whole, targets, names, set(picture.absent), picture.exhaustive, picture.source)

    def _find_regions(
        self, row: int, pixels: UInt8[np.ndarray, "h w 3"], labelled: Bool[np.ndarray, "n h w"]
    ) -> Bool[np.ndarray, "k h w"]:
        """The unlabelled regions of a picture, sought when it first comes up: a fifth of a second."""
        if not self.settings.regions:
            return labelled[:0]
        if row not in self._regions:
            self._regions[row] = find_regions(pixels, labelled)
        return rle.decode(self._regions[row], pixels.shape[:2])

    def _read(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        decoded = cv2.imdecode(self.bytes[row], cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f"{self.pictures[row].path} is no picture that OpenCV reads: leave it out of the set")
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))

    def _to_tensors(self, rng: np.random.Generator, crop: Crop) -> dict[str, torch.Tensor]:
        areas = crop.targets.sum(axis=(1, 2))
        is_region = np.asarray([name == REGION for name in crop.names])
        visible, regions = np.flatnonzero((areas >= 2) & ~is_region), np.flatnonzero((areas >= 6) & is_region)
        rows = rng.permutation(np.resize(rng.permutation(visible), self.settings.objects))
        if len(regions):
            rows = np.where(rng.random(len(rows)) < self.settings.regions, rng.choice(regions, len(rows)), rows)
        targets = crop.targets[rows]
        points = np.stack([_first_point(rng, target) for target in targets])
        boxes = np.stack([_loose_box(rng, target) for target in targets])
        names = [self._phrase(rng, crop.names[row]) for row in rows]
        phrases, unions, present = self._draw_names(rng, crop, areas)
        return {
            "pixels": torch.from_numpy(np.ascontiguousarray(recolour(rng, crop.pixels).transpose(2, 0, 1))),
            "targets": torch.from_numpy(targets),
            "points": torch.from_numpy(points),
            "boxes": torch.from_numpy(boxes),
            "object_phrases": torch.tensor(names),
            "only_boxed": torch.from_numpy(is_region[rows]),
            "phrases": torch.tensor(phrases),
            "unions": torch.from_numpy(unions),
            "present": torch.tensor(present),
        }

    def _draw_names(
        self, rng: np.random.Generator, crop: Crop, areas: np.ndarray
    ) -> tuple[list[int], Float[np.ndarray, "k q q"], list[int]]:
        """Names to ask for: half of them present. `present` is 1, 0, or -1 where nothing may be asked."""
        quarter = self.settings.side // 4
        no_names = {UNNAMED, REGION}
        there = {name for name, area in zip(crop.names, areas, strict=True) if area >= 4} - no_names
        partly = {name for name, area in zip(crop.names, areas, strict=True) if area > 0} - no_names
        gone = {name for name in crop.names if name not in partly} if crop.exhaustive else set()
        yes = list(rng.permutation(sorted(there)))
        no = list(rng.permutation(sorted((crop.absent | gone) - partly - no_names)))
        wanted = yes[: max(1, self.settings.names // 2)]
        wanted += no[: self.settings.names - len(wanted)]
        phrases, unions, present = [], [], []
        for name in wanted:
            asked, members = self._perhaps_group(rng, crop, name, partly)
            rows = [i for i, other in enumerate(crop.names) if other in members]
            union = crop.targets[rows].max(axis=0) if rows else np.zeros((quarter, quarter), np.float32)
            phrases.append(self._phrase(rng, asked))
            unions.append(union)
            present.append(int(name in there))
        missing = self.settings.names - len(wanted)
        unions += [np.zeros((quarter, quarter), np.float32)] * missing
        return phrases + [-1] * missing, np.stack(unions), present + [-1] * missing

    def _perhaps_group(
        self, rng: np.random.Generator, crop: Crop, name: str, partly: set[str]
    ) -> tuple[str, tuple[str, ...]]:
        """What to ask in place of `name`, and the names it stands for: sometimes a group, where its source labels it.

        An absent name cannot stand for a group of which another member is there.
        """
        groups = vocabulary.groups_of(name, crop.source) if rng.random() < self.settings.groups else []
        for group in groups:
            members = vocabulary.GROUPS[group]
            if name in partly or partly.isdisjoint(members):
                return group, members
        return name, (name,)

    def _phrase(self, rng: np.random.Generator, name: str) -> int:
        """A row of the phrase table for `name` or a synonym of it; -1 for a name that is no text."""
        synonyms = vocabulary.SYNONYMS.get(name, ())
        if synonyms and rng.random() < self.settings.synonyms:
            name = str(rng.choice(synonyms))
        choices = self.phrases.get(name)
        return int(rng.choice(choices)) if choices else -1


def _first_point(rng: np.random.Generator, target: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "2"]:
    """A first click in input pixels."""
    return np.asarray(clicks.drawn_click(target, rng), np.float32) * 4


def _loose_box(rng: np.random.Generator, target: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "4"]:
    """The object's box in input pixels, each side moved by up to a tenth of it (SAM, section A), often less."""
    inside = target > min(0.5, 0.99 * float(target.max()))
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = np.asarray([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) * 4
    sides = np.tile(box[2:] - box[:2], 2)
    spread = 0.1 if rng.random() < 0.3 else 0.02
    jitter = np.clip(rng.normal(0, spread, 4) * sides + rng.uniform(-2, 2, 4), -20, 20)
    return (box + np.clip(jitter, -0.2 * sides, 0.2 * sides)).astype(np.float32)
