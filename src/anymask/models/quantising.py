"""int8 for weights and activations of an encoder, calibrated on pictures, through NNCF.

The decoder is left in float: it is small, and what a click says is a matter of fractions of a pixel. Of networks with
depthwise convolutions these and the first layers are too, which gain little and lose most, and all that is float there
is float32. Ranges are those of the extremes seen. `tests/test_export.py` holds masks to a mean IoU of 0.97.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from anymask.data.images import find_images, read_image
from anymask.models.graphs import quiet, require, save_openvino
from anymask.models.promptable import PromptableModel
from anymask.types import Image

PICTURES = 12  # of a folder, evenly taken
BUNDLED = Path(str(files("anymask"))) / "weights" / "calibration"
DRAWN_SIZES = ((480, 640), (640, 480), (512, 512))  # of the pictures beside the bundled photos
FIRST_LAYERS = 14  # in float where there are depthwise convolutions: about a fifth of pocket's encoder


def calibration_images(folder: Path | None = None) -> list[Image]:
    """Up to `PICTURES` photos of the folder; without one the bundled photos and some drawn pictures.

    Raises FileNotFoundError or ValueError where there is no folder, or no photo in it.
    """
    if folder is None:
        photos = [read_image(path) for path in find_images([BUNDLED])]
        return photos + [drawn(size, seed) for seed, size in enumerate(DRAWN_SIZES)]
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


def quantise(graph: Path, output: Path, model: PromptableModel, images: Sequence[Image]) -> str:
    """Writes the encoder `graph` (ONNX) in int8, in the format that the name of `output` says.

    Returns what the rest is to be computed in, float32 or fastest (`runtimes.PRECISIONS`).
    """
    require("int8")
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    pixels = [model.preprocess(image, model.frame(image.size))[None].float().numpy() for image in images]
    read = _read_openvino if output.suffix == ".xml" else _read_onnx
    loaded, name, layers, write = read(graph)
    in_float = _in_float(layers)
    with quiet("nncf"):
        quantised = nncf.quantize(
            loaded,
            nncf.Dataset(pixels, lambda one: {name: one}),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=in_float),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )
    write(quantised, output)
    return "float32" if in_float else "fastest"


def _in_float(layers: Mapping[str, bool]) -> list[str]:
    """Of convolutions and linear layers in order, and whether they are depthwise."""
    if not any(layers.values()):
        return []
    first = list(layers)[:FIRST_LAYERS]
    return [*first, *(name for name, is_depthwise in layers.items() if is_depthwise and name not in first)]


def _read_openvino(graph: Path) -> tuple[Any, str, dict[str, bool], Callable[[Any, Path], None]]:
    """The graph, the name of its input, its layers as `_in_float` takes them, and what writes it."""
    import openvino

    loaded = openvino.Core().read_model(graph)
    kinds = {"Convolution": False, "MatMul": False, "GroupConvolution": True}
    ops = [op for op in loaded.get_ordered_ops() if op.get_type_name() in kinds]
    layers = {op.get_friendly_name(): kinds[op.get_type_name()] for op in ops}
    return loaded, loaded.inputs[0].any_name, layers, save_openvino


def _read_onnx(graph: Path) -> tuple[Any, str, dict[str, bool], Callable[[Any, Path], None]]:
    """As `_read_openvino`."""
    import onnx

    loaded = onnx.load(graph)
    nodes = [node for node in loaded.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    layers = {node.name: any(one.name == "group" and one.i > 1 for one in node.attribute) for node in nodes}
    return loaded, loaded.graph.input[0].name, layers, onnx.save


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 whose amplitude falls as one over the frequency."""
    h, w = size
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal(size)) / frequency
    clouds = np.fft.irfft2(spectrum, size)
    normed: np.ndarray = (clouds / clouds.std()).astype(np.float32)
    return normed
