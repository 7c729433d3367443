"""int8 for weights and activations of an encoder, calibrated on pictures, through NNCF.

The decoder is left in float: it is small, and what a click says is a matter of fractions of a pixel. So are depthwise
convolutions, which gain little and lose most. Ranges are those of the extremes seen: cutting them cost pocket 0.06 IoU.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.images import find_images, read_image
from anymask.models.graphs import require
from anymask.models.promptable import PromptableModel
from anymask.types import Image

PICTURES = 12  # of a folder, evenly taken
BUNDLED = Path(str(files("anymask"))) / "weights" / "calibration"
DRAWN_SIZES = ((480, 640), (640, 480), (512, 512))
DRAWN = 3  # pictures beside the bundled photos


def calibration_images(folder: Path | None = None) -> list[Image]:
    """Up to `PICTURES` photos of the folder; without one four bundled photos and some drawn pictures.

    Raises FileNotFoundError or ValueError where there is no folder, or no photo in it.
    """
    if folder is None:
        return [read_image(path) for path in find_images([BUNDLED])] + [
            drawn(size, seed) for seed, size in enumerate(DRAWN_SIZES[:DRAWN])
        ]
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of photos to calibrate on: {folder}")
    paths = find_images([folder])
    if not paths:
        raise ValueError(f"{folder} holds no photos to calibrate int8 on: give a folder with some, best 10 or more")
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(PICTURES, len(paths))).round().astype(int))
    return [read_image(paths[i]) for i in chosen]


def drawn(size: tuple[int, int], seed: int) -> Image:
    """Something with the statistics of a photo: clouds of every scale, before them shapes with texture of their own.

    The amplitude of natural pictures falls as one over the frequency (Field 1987).
    """
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[:h, :w].astype(np.float32)
    pixels = 128 + 50 * np.stack([_clouds(size, rng) for _ in range(3)], axis=-1)
    for _ in range(12):
        cx, cy, across = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.05, 0.3) * min(h, w)
        turn, ratio = rng.uniform(0, np.pi), rng.uniform(0.3, 1.0)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / ratio
        inside = (np.hypot(u, v) if rng.random() < 0.5 else np.maximum(abs(u), abs(v))) < across
        pixels[inside] = rng.uniform(0, 255, 3) + 20 * _clouds(size, rng)[inside][:, None]
    return Image(pixels.clip(0, 255).astype(np.uint8), name=f"drawn {seed}")


def quantise(graph: Path, output: Path, model: PromptableModel, images: Sequence[Image]) -> None:
    """Writes the encoder `graph` (ONNX) in int8, in the format that the name of `output` says."""
    require("int8")
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    pixels = [model.preprocess(image, model.frame(image.size))[None].float().numpy() for image in images]
    read = _as_openvino if output.suffix == ".xml" else _as_onnx
    loaded, name, depthwise, write = read(graph)
    with _quiet():
        quantised = nncf.quantize(
            loaded,
            nncf.Dataset(pixels, lambda one: {name: one}),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=depthwise),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )
    write(quantised, output)


def _as_openvino(graph: Path) -> tuple[Any, str, list[str], Callable[[Any, Path], None]]:
    """The graph, the name of its input, its depthwise convolutions, and what writes it."""
    import openvino

    loaded = openvino.Core().read_model(graph)
    depthwise = [op.get_friendly_name() for op in loaded.get_ops() if op.get_type_name() == "GroupConvolution"]
    return loaded, loaded.inputs[0].any_name, depthwise, partial(openvino.save_model, compress_to_fp16=False)


def _as_onnx(graph: Path) -> tuple[Any, str, list[str], Callable[[Any, Path], None]]:
    """As `_as_openvino`."""
    import onnx

    loaded = onnx.load(graph)
    grouped = [node for node in loaded.graph.node for one in node.attribute if one.name == "group" and one.i > 1]
    return loaded, loaded.graph.input[0].name, [node.name for node in grouped], onnx.save


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 whose amplitude falls as one over the frequency."""
    h, w = size
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal(size)) / frequency
    clouds = np.fft.irfft2(spectrum, size)
    normed: np.ndarray = (clouds / clouds.std()).astype(np.float32)
    return normed


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what NNCF logs, and the bars that it draws on stdout, which holds our results."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
