"""Pictures in: everything Pillow reads becomes an upright RGB `Image`; bad files are refused by name.

How pixels are converted, once, here:
- EXIF orientation is applied.
- Grey of more than 8 bits (16-bit PNG and TIFF, 32-bit integers, floats) is stretched from its observed minimum and
  maximum to 0 to 255, because scans and microscopes seldom fill their range; floats within 0 to 1 are taken as they
  are. Colour of 16 bits in a file is cut to its upper 8 by Pillow.
- Transparency is laid over white, as a viewer shows it.
- CMYK, YCbCr, Lab, HSV, palette and 1-bit pictures become RGB.
- A file of several frames or pages is refused, except where the others belong to one picture (a phone's MPO with its
  preview or depth map, a PSD with its layers): there the picture itself is read.
"""

import glob
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, ImageCms, ImageOps, UnidentifiedImageError
from PIL import Image as PillowImage

from anymask.data.files import write_whole
from anymask.types import Image

PathLike = str | os.PathLike[str]
BinaryFile = IO[bytes] | io.BytesIO
ImageSource = PathLike | BinaryFile | np.ndarray | PillowImage.Image | Image

MAX_PIXELS = 200_000_000
# One picture in several frames: MPO previews and depth maps, PSD layers.
_ONE_PICTURE = ("MPO", "PSD")
# Pillow knows these only in part: it needs another program, another system, or reads no pixels at all.
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
# What Pillow's decoders raise on damaged files (found by the fuzz test in tests/test_images.py).
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    PillowImage.DecompressionBombError,
)
_PILLOW_LIMIT = threading.RLock()
_PILLOW_WARNS = 80_000_000


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture in a file, an open binary file, an array or a Pillow image.

    An array is (h, w), (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4). Raises `FileNotFoundError` or `ValueError` in one
    line that names the file.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, np.ndarray):
        return Image(_array_to_rgb(source))
    name = _name_of(source)
    with opened(source, max_pixels) as picture:
        return Image(_picture_to_rgb(picture, name), Path(name).stem or "image")


def write_image(path: PathLike, image: Image) -> None:
    """Save the pixels in the format that the suffix of `path` names."""
    with write_whole(path) as temporary:
        # A PNG of level 3 takes a third of the time of the usual 6, and a seventh more bytes.
        PillowImage.fromarray(image.pixels).save(temporary, compress_level=3)


def read_mask(source: PathLike | BinaryFile, *, max_pixels: int = MAX_PIXELS) -> Bool[np.ndarray, "h w"]:
    """A rough mask: every pixel that is neither black nor transparent. A mask without any such pixel is refused.

    JPEG does not keep black black, so there a pixel counts from half of the brightest value on.
    """
    with opened(source, max_pixels) as picture:
        lossy = picture.format in ("JPEG", "MPO")
        values = _mask_values(picture, _name_of(source))
    mask = values > (values.max() / 2 if lossy else 0)
    if not mask.any():
        raise ValueError(f"{_name_of(source)} must hold a mask, but is black or transparent all over: draw the object")
    return np.ascontiguousarray(mask)


@contextmanager
def opened(
    source: PathLike | BinaryFile | PillowImage.Image, max_pixels: int = MAX_PIXELS
) -> Iterator[PillowImage.Image]:
    """The decoded, upright picture; everything that a bad file makes Pillow raise becomes one line with its name."""
    name = _name_of(source)
    if isinstance(source, PillowImage.Image):
        yield _decoded(source, name, max_pixels)
        return
    _check_file(source, name)
    try:
        with _pillow_limit_off():
            picture = PillowImage.open(source)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} must be an image: Pillow recognises no format in it") from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"{name} cannot be read as an image: {_one_line(error)}") from error
    with picture:
        yield _decoded(picture, name, max_pixels)


def find_images(inputs: Sequence[PathLike]) -> list[Path]:
    """Files as named, pictures directly in folders, and pictures that globs match (`**` is any depth), in this order.

    Folders and globs are sorted and give files with a picture's suffix that are not hidden. Each file comes once. A
    path that neither exists nor is a glob is a `FileNotFoundError`; a folder or glob may be empty.
    """
    found: dict[Path, Path] = {}
    for entry in inputs:
        for path in _expanded(Path(entry)):
            found.setdefault(path.resolve(), path)
    return list(found.values())


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, lower case with their dot, of the formats that Pillow decodes by itself."""
    formats = PillowImage.registered_extensions()
    return frozenset(end for end, name in formats.items() if name in PillowImage.OPEN and name not in _NO_PICTURES)


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        return _pictures(path.iterdir())
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        return _pictures(Path(match) for match in glob.iglob(str(path), recursive=True))
    raise FileNotFoundError(f"no such file or folder: {path}")


def _pictures(paths: Iterator[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in image_suffixes() and not path.name.startswith(".") and path.is_file()
    )


def _check_file(source: PathLike | BinaryFile, name: str) -> None:
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {name}")
    if path.is_dir():
        raise ValueError(f"{name} must be an image file, but is a folder")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{name} must be an image, but is empty (0 bytes)")


def _decoded(picture: PillowImage.Image, name: str, max_pixels: int) -> PillowImage.Image:
    w, h = picture.size
    if w * h > max_pixels:
        raise ValueError(f"{name} has {w} x {h} = {w * h} pixels, more than max_pixels {max_pixels}: make it smaller")
    try:
        frames = 1 if picture.format in _ONE_PICTURE else getattr(picture, "n_frames", 1)
        if frames == 1:
            with _pillow_limit_off() if w * h > _PILLOW_WARNS else nullcontext():
                return _upright(picture)
    except _DECODER_ERRORS as error:
        raise ValueError(f"{name} cannot be read as an image: {_one_line(error)}") from error
    raise ValueError(f"{name} has {frames} frames, but an image has one: save the frame you want as its own file")


def _upright(picture: PillowImage.Image) -> PillowImage.Image:
    picture.load()
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    turned = ImageOps.exif_transpose(picture)
    turned.format = picture.format
    return turned


@contextmanager
def _pillow_limit_off() -> Iterator[None]:
    """Pillow's own limit is global and lower than `max_pixels` may be; ours is checked before any pixel is decoded."""
    with _PILLOW_LIMIT:
        limit = PillowImage.MAX_IMAGE_PIXELS
        PillowImage.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PillowImage.MAX_IMAGE_PIXELS = limit


def _picture_to_rgb(picture: PillowImage.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = _to_8_bits(np.asarray(picture), name)
        return _array_to_rgb(grey)
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        return np.array(converted, dtype=np.uint8)
    if picture.has_transparency_data:
        picture = _with_alpha(picture)
        picture = PillowImage.alpha_composite(PillowImage.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _with_alpha(picture: PillowImage.Image) -> PillowImage.Image:
    straight = {"RGBa": "RGBA", "La": "LA"}.get(picture.mode, picture.mode)
    return picture.convert(straight).convert("RGBA")


def _mask_values(picture: PillowImage.Image, name: str) -> np.ndarray:
    """The strongest channel of each pixel, 0 where it is transparent."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return np.asarray(picture).astype(bool)
    if not picture.has_transparency_data:
        return np.asarray(_picture_to_rgb(picture, name).max(axis=2))
    rgba: np.ndarray = np.asarray(_with_alpha(picture))
    strongest: np.ndarray = rgba[:, :, :3].max(axis=2)
    strongest[rgba[:, :, 3] == 0] = 0
    return strongest


def _array_to_rgb(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ValueError(f"an image array must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), got {array.shape}")
    if not (array.dtype == bool or np.issubdtype(array.dtype, np.number)) or np.iscomplexobj(array):
        raise ValueError(f"an image array must hold real numbers, got {array.dtype}")
    values = array.astype(np.float32) if array.dtype == bool else array
    pixels = values if values.dtype == np.uint8 else _to_8_bits(values, "the image array")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _picture_to_rgb(PillowImage.fromarray(np.ascontiguousarray(pixels)), "the image array")
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    rgb[...] = pixels.reshape(*pixels.shape[:2], -1)
    return rgb


def _to_8_bits(values: np.ndarray, name: str) -> UInt8[np.ndarray, "..."]:
    """Floats within 0 to 1 times 255; all else from its observed minimum and maximum to 0 to 255."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{name} must hold finite values, got NaN or infinity")
    if np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    wide: np.ndarray = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled: np.ndarray = np.rint((wide - low) * scale)
    return scaled.astype(np.uint8)


def _name_of(source: PathLike | BinaryFile | PillowImage.Image) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "filename", None) if isinstance(source, PillowImage.Image) else getattr(source, "name", None)
    return name if isinstance(name, str) and name else "image"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
