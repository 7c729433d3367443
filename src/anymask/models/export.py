"""`export`: a model as a folder of graphs, which runs without its weights and without PyTorch's modules.

`exported.py` reads what is written here; `docs/runtimes.md` says what other programs need to know.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anymask.data.files import write_json, write_whole_folder
from anymask.models.exported import ABOUT, FORMATS, VERSION, Exported, is_exported
from anymask.models.graphs import decoder_of, encoder_of, require, save_openvino, write_onnx
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.models.quantising import calibration_images, quantise
from anymask.models.sources import locate
from anymask.types import Image

_log = logging.getLogger("anymask")


def export(
    model: str | Path | Model,
    output: str | Path,
    format: str = "onnx",  # noqa: A002  # the word that everyone uses
    dtype: str = "float32",
    calibrate: str | Path | None = None,
) -> Path:
    """Writes `model` into the folder `output`, whole or not at all; an earlier export there is replaced.

    `format` is onnx or openvino; `dtype` float32, or int8 of the encoder, calibrated on the photos in the folder
    `calibrate` or on bundled ones; with openvino also float16 (half the size) or bfloat16 (computed in it).
    Raises ValueError for another format or dtype, for what is not installed, for a folder without photos, and for a
    model that answers neither points nor boxes; FileExistsError where `output` holds something else.
    """
    folder = Path(output)
    check_export(folder, format, dtype, calibrate)
    images = calibration_images(None if calibrate is None else Path(calibrate)) if dtype == "int8" else []
    ready = load_for_export(model) if isinstance(model, str | Path) else model
    if not isinstance(ready, PromptableModel) or not ready.capabilities.points:
        raise ValueError(f"{ready.name} answers neither points nor boxes, which is what an exported model does")
    if ready.dtype != torch.float32 or {one.device.type for one in ready.network.parameters()} != {"cpu"}:
        raise ValueError(
            f"a model to be exported must be on the CPU in float32, with its weights: load {ready.name} so"
        )
    with write_whole_folder(folder, replace=True) as temporary:
        _log.info("exporting %s as %s, %s: this takes some seconds to minutes", ready.name, format, dtype)
        _write(ready, temporary, format, dtype, images)
    return folder


def load_for_export(model: str | Path, **sizes: Any) -> Model:
    """As `load`, with weights. Raises ValueError for an exported folder, which has none."""
    path = locate(model).path
    if is_exported(path):
        raise ValueError(f"{path} is exported already: give the model that it was made from")
    return load(model, "cpu", runtime="eager", **sizes)


def check_export(folder: Path, format: str, dtype: str, calibrate: str | Path | None) -> None:  # noqa: A002
    """Raises what `export` does, before a model is loaded for nothing."""
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format}")
    known = FORMATS[format]
    if dtype not in known.dtypes:
        raise ValueError(f"format {format} is written in {', '.join(known.dtypes)}, got {dtype}")
    if calibrate is not None and dtype != "int8":
        raise ValueError(f"only int8 is calibrated: give dtype int8, or no photos to calibrate {dtype} on")
    if folder.exists() and not is_exported(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and holds something else: remove it, or give another -o")
    require(known.runtime)
    if dtype == "int8":
        require("int8")


@torch.inference_mode()
def _write(model: PromptableModel, folder: Path, format: str, dtype: str, images: list[Image]) -> None:  # noqa: A002
    """The files of an exported folder."""
    suffix = FORMATS[format].suffix
    encoder = encoder_of(model, model.decoder_features)
    one = dict(zip(encoder.outputs, encoder.module(*encoder.inputs.values()), strict=True))
    computed_in = "bfloat16" if dtype == "bfloat16" else "float32"
    graphs = {"encoder": encoder, "decoder": decoder_of(model, one)}
    for part, half in graphs.items():
        graph, in_int8 = folder / f"{part}.onnx", dtype == "int8" and part == "encoder"
        write_onnx(half, graph, optimised=in_int8)
        if in_int8:
            whole = graph.rename(folder / "float.onnx")
            computed_in = quantise(whole, folder / f"{part}.{suffix}", model, images)
            _remove_graph(whole)
        elif format == "openvino":
            import openvino

            save_openvino(openvino.Core().read_model(graph), folder / f"{part}.{suffix}", dtype == "float16")
            _remove_graph(graph)
    about = Exported(
        version=VERSION,
        family=model.family,
        model=model.name,
        format=format,
        dtype=dtype,
        computed_in=computed_in,
        features=encoder.outputs,
        input_size=model.input_size,
        mask_size=model.mask_size,
        encoder=f"encoder.{suffix}",
        decoder=f"decoder.{suffix}",
    )
    write_json(folder / "config.json", model.config, indent=2)
    write_json(folder / ABOUT, asdict(about), indent=2)


def _remove_graph(graph: Path) -> None:
    """The file, and that of its weights if it has one."""
    for file in (graph, graph.with_name(f"{graph.name}.data")):
        file.unlink(missing_ok=True)
