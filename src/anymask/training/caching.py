"""What a frozen encoder says of each view of an image, computed once and kept on disk.

A view is an image as training looks at it: whole or a part of it, as it is or mirrored. A file's name is a digest of
all that its content depends on (the weights, the picture, the view, the number format), so files of another model or of
a picture that was changed are never read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from anymask.data.files import write_whole
from anymask.data.images import read_image
from anymask.data.pairs import Pair
from anymask.models.digests import digest_of_weights
from anymask.models.promptable import PromptableModel
from anymask.ops.grids import CropBox
from anymask.types import Image, Size

SMALLEST_PART = 0.5  # side of a random part, as a share of the image's


@dataclass(frozen=True)
class View:
    """`crop_box` of the image that was perhaps mirrored before; None is the whole of it."""

    crop_box: CropBox | None = None
    mirrored: bool = False

    def of(self, image: Image) -> Image:
        """The picture to lay into a frame of `crop_box`."""
        return Image(np.ascontiguousarray(image.pixels[:, ::-1]), image.name) if self.mirrored else image


def view_of(size: Size, index: int, seed: tuple[int, ...]) -> View:
    """View 0 is the image, 1 its mirror image, further ones are random parts by the seed; odd ones are mirrored."""
    if index < 2:
        return View(None, mirrored=index == 1)
    rng = np.random.default_rng((*seed, index))
    h, w = (max(1, round(side * share)) for side, share in zip(size, rng.uniform(SMALLEST_PART, 1, 2), strict=True))
    y0, x0 = int(rng.integers(0, size[0] - h + 1)), int(rng.integers(0, size[1] - w + 1))
    return View((x0, y0, x0 + w, y0 + h), mirrored=index % 2 == 1)


@dataclass
class FeatureStore:
    """Features by image and view, at most `most_mb` megabytes of them on disk; what has no room is encoded each time.

    `half` keeps them as float16: half the space, and numbers that differ in the fourth digit; `names` are those that
    are of use, if not all.
    """

    model: PromptableModel
    folder: Path
    most_mb: float
    half: bool = False
    names: tuple[str, ...] | None = None
    _pictures: dict[Path, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = digest_of_weights(self.model.network)
        self._bytes = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def get(self, path: Path, size: Size, view: View) -> dict[str, Tensor]:
        """The features of a picture of `size`, as `embed` gives them for a batch of one, on the model's device."""
        kept = self._kept(path, size, view)
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in kept.items()}

    def megabytes(self, path: Path, size: Size) -> float:
        """What one view takes."""
        return sum(tensor.nbytes for tensor in self._kept(path, size, View()).values()) / 1e6

    def _kept(self, path: Path, size: Size, view: View) -> dict[str, Tensor]:
        file = self.folder / f"{self._key(path, view)}.safetensors"
        try:
            return load_file(file, device=self.model.device)
        except (FileNotFoundError, SafetensorError):
            made = self._encode(path, size, view)
            self._keep(file, made)
            return made

    @torch.no_grad()
    def _encode(self, path: Path, size: Size, view: View) -> dict[str, Tensor]:
        self.model.network.eval()
        frame = self.model.frame(size, view.crop_box)
        pixels = self.model.preprocess(view.of(read_image(path)), frame)[None]
        features = self.model.embed(pixels.to(self.model.device))
        return {
            name: tensor.half() if self.half and tensor.is_floating_point() else tensor
            for name, tensor in features.items()
            if self.names is None or name in self.names
        }

    def _keep(self, file: Path, tensors: dict[str, Tensor]) -> None:
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if (self._bytes + needed) / 1e6 > self.most_mb:
            return
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        with write_whole(file) as temporary:
            temporary.write_bytes(content)
        self._bytes += needed

    def _key(self, path: Path, view: View) -> str:
        if path not in self._pictures:
            self._pictures[path] = hashlib.blake2b(path.read_bytes()).digest()
        sides = f"{view} {self.model.input_size} {self.half} {self.names}".encode()
        return hashlib.blake2b(self.weights.encode() + self._pictures[path] + sides, digest_size=16).hexdigest()


def digest_of_pairs(pairs: Sequence[Pair]) -> str:
    """A number for all pictures and masks, wherever they lie."""
    total = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        total.update(pair.image.read_bytes())
        for one in pair.masks.rles:
            total.update(str(one["counts"]).encode())
    return total.hexdigest()
