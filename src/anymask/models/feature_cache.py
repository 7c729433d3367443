"""What is costly to compute twice, kept: the features of images, and any other tensors, in memory and on disk.

A file's name is a digest of all that its content depends on (the weights, what the model is set to, the picture, the
crop), so files of another model or of a picture that was changed are never read. In memory an image is known by its
array of pixels: do not change them, or the weights of the model, while a cache knows both.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anymask.data.files import write_whole
from anymask.models.digests import digest_of_model
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.ops.grids import CropBox
from anymask.types import Features, Image

TENSORS_MB = 64.0  # of what `tensors` keeps in memory: text features and the like, small and many
SUFFIX = ".features.safetensors"  # other files in the folder are not the cache's, and are left alone
CHANNELS_LAST = "channels_last"  # in a file's metadata: the names of tensors that are laid out so

_log = logging.getLogger("anymask")


@dataclass
class FeatureCache:
    """The last `held` images and as many crops in memory; in `folder`, if there is one, the last `most_mb` megabytes.

    Files are written whole, and a broken one is made anew, so that several programs may share a folder. A model that is
    no `PromptableModel` has no digest, and its features stay in memory.
    """

    folder: Path | None = None
    most_mb: float = 2000.0
    held: int = 8
    _features: "OrderedDict[tuple[Any, ...], _Held]" = field(default_factory=OrderedDict, repr=False)
    _tensors: OrderedDict[str, dict[str, Tensor]] = field(default_factory=OrderedDict, repr=False)
    _weights: WeakKeyDictionary[PromptableModel, str] = field(default_factory=WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        if self.held < 0 or self.most_mb < 0:
            raise ValueError(f"held and most_mb must be 0 or more, got {self.held} and {self.most_mb:g}")

    def encode(self, model: Model, image: Image, crop_box: CropBox | None = None) -> Features:
        """As `model.encode` of the image, or of a crop of it; computed only where it is kept nowhere."""
        if crop_box == (0, 0, image.size[1], image.size[0]):
            crop_box = None
        key = (id(model), getattr(model, "input_size", None), id(image.pixels), crop_box)
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key].features
        features = self._read_or_encode(model, image, crop_box)
        self._features[key] = _Held(features, model, image)
        alike = [other for other in self._features if (other[-1] is None) == (crop_box is None)]
        for oldest in alike[: max(0, len(alike) - self.held)]:  # windows of an image do not push it out
            del self._features[oldest]
        return features

    def tensors(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` gives, on the CPU; `key` must say all that it depends on."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
            return self._tensors[key]
        found = self._kept(_digest(b"tensors", key.encode()), make, "cpu")
        self._tensors[key] = found
        megabytes = sum(_megabytes(tensors) for tensors in self._tensors.values())
        while self._tensors and megabytes > TENSORS_MB:
            megabytes -= _megabytes(self._tensors.popitem(last=False)[1])
        return found

    def _read_or_encode(self, model: Model, image: Image, crop_box: CropBox | None) -> Features:
        def encode() -> Features:
            return model.encode([image], None if crop_box is None else [crop_box])[0]

        if self.folder is None or not isinstance(model, PromptableModel):
            return encode()
        frame = model.frame(image.size, crop_box)
        x0, y0, x1, y1 = frame.crop_box
        settings = f"{frame} {model.config} {model.runtime.name}"
        key = _digest(self._weights_of(model).encode(), settings.encode(), image.pixels[y0:y1, x0:x1].tobytes())
        return Features(model.name, frame, self._kept(key, lambda: encode().tensors, model.device))

    def _weights_of(self, model: PromptableModel) -> str:
        if model not in self._weights:
            self._weights[model] = digest_of_model(model)
        return self._weights[model]

    def _kept(self, key: str, make: Callable[[], Mapping[str, Tensor]], device: str) -> dict[str, Tensor]:
        """From the folder, or made and put there."""
        if self.folder is None:
            return dict(make())
        file = self.folder / f"{key}{SUFFIX}"
        try:
            found = _read(file, device)
        except (OSError, SafetensorError):
            made = dict(make())
            self._keep(file, made)
            return made
        with suppress(OSError):  # a folder that may only be read
            file.touch()
        return found

    def _keep(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Writes the file where it has room; a disk that is full or may not be written ends no long run."""
        laid = " ".join(name for name, tensor in tensors.items() if _is_channels_last(tensor))
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {CHANNELS_LAST: laid})
        room = self.most_mb * 1e6 - len(content)
        if room < 0:
            return
        try:
            _shrink(file.parent, room)
            with write_whole(file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            _log.warning("features are not kept: %s", error)


@dataclass(frozen=True, eq=False)
class _Held:
    """Features with what their key tells apart by identity, which so is not given to anything else."""

    features: Features
    model: Model
    image: Image


def _read(file: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file, laid out as they were: another layout is computed with other rounding."""
    with safe_open(file, framework="pt", device=device) as opened:
        laid = (opened.metadata() or {}).get(CHANNELS_LAST, "").split()
        found = {name: opened.get_tensor(name) for name in opened.keys()}
    last = torch.channels_last
    return {name: one.contiguous(memory_format=last) if name in laid else one for name, one in found.items()}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _shrink(folder: Path, most: float) -> None:
    """Removes what was used longest ago, until the folder holds at most so many bytes."""
    files = list[tuple[int, int, Path]]()
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            about = path.stat()
        except FileNotFoundError:  # another program was quicker
            continue
        files.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size


def _megabytes(tensors: Mapping[str, Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors.values()) / 1e6


def _digest(*parts: bytes) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
