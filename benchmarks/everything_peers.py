"""The contenders of benchmarks/everything.py, each with the same weights, photo, points and thresholds.

Each has its own default batch and the inference mode its authors use:

- `segment_anything`: SamAutomaticMaskGenerator, with `coco_rle`, which its documentation advises for large photos;
- `transformers`: the pipeline "mask-generation" with SamImageProcessor; it has dense masks only;
- `ultralytics`: its SAM predictor, which makes masks at 1024 pixels and enlarges those that stay. It is under the AGPL:
  no part of anymask needs it, and it is measured where somebody has installed it;
- `anymask` and `anymask exact`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

Everything = Callable[[np.ndarray, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Contender:
    """A loaded model and how it is asked: `everything` for the settings of SamAutomaticMaskGenerator."""

    everything: Everything
    rles: Callable[[Any], list[Any]]
    weights: Callable[[], Iterator[torch.Tensor]]


def load_segment_anything(path: Path) -> Contender:
    """The authors' own."""
    from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

    sam = sam_model_registry["vit_b"](str(path))

    def everything(pixels: np.ndarray, settings: Mapping[str, Any]) -> Any:
        return SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **settings).generate(pixels)

    return Contender(everything, lambda found: [one["segmentation"] for one in found], sam.parameters)


def load_transformers(path: Path) -> Contender:
    """The pipeline, float32 as by default."""
    from transformers import SamImageProcessor, pipeline

    model = transformers_model(path)
    ask = pipeline("mask-generation", model=model, image_processor=SamImageProcessor(), device="cpu")

    def everything(pixels: np.ndarray, settings: Mapping[str, Any]) -> Any:
        options = {("points_per_crop" if key == "points_per_side" else key): value for key, value in settings.items()}
        return ask(PillowImage.fromarray(pixels), **options)

    return Contender(everything, lambda found: dense_rles(np.asarray(found["masks"])), model.parameters)


def transformers_model(path: Path) -> Any:
    """SamModel with the same tensors."""
    from transformers import SamConfig, SamModel

    from anymask.models.sam_keys import config_of, renamed

    model = SamModel(SamConfig(**config_of("vit_b")))
    model.load_state_dict(renamed(torch.load(path, weights_only=True), "vit_b"))
    return model.eval()


def load_ultralytics(path: Path) -> Contender:
    """Its predictor in the mode that segments all. Never asks the network."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(path.parent)}
    from ultralytics.models.sam import Predictor

    named = path.with_name("sam_b.pt")  # it knows models by the names of their files
    if not named.exists():
        named.hardlink_to(path)
    options = {"imgsz": 1024, "device": "cpu", "iou": 0.7, "save": False, "verbose": False}
    ask = Predictor(overrides={"model": str(named), **options})
    ask.setup_model(verbose=False)

    def everything(pixels: np.ndarray, settings: Mapping[str, Any]) -> Any:
        iou, stability = settings["pred_iou_thresh"], settings["stability_score_thresh"]
        ask.args.conf = iou
        given = {"conf_thres": iou, "stability_score_thresh": stability, "stability_score_offset": 1.0}
        return ask(pixels[:, :, ::-1], points_stride=settings["points_per_side"], **given)[0]

    def rles(found: Any) -> list[Any]:
        return [] if found.masks is None else dense_rles(found.masks.data.numpy() > 0)

    return Contender(everything, rles, ask.model.parameters)


def load_anymask(path: Path | str, exact: bool = False, **loading: Any) -> Contender:
    """Ours, as a user calls it; `loading` goes to `load`."""
    from anymask import Image, load
    from anymask.automatic import everything

    model = load(path, device="cpu", **loading)

    def ask(pixels: np.ndarray, settings: Mapping[str, Any]) -> Any:
        return everything(Image(pixels), model=model, exact=exact, **settings)

    return Contender(ask, lambda found: list(found.rles), lambda: tensors_of(model))


def transformers_encoder(path: Path, pixels: np.ndarray) -> Callable[[], object]:
    """From pixels to the embedding, with the pipeline's own processor."""
    from transformers import SamImageProcessor

    model, processor = transformers_model(path), SamImageProcessor()

    @torch.inference_mode()
    def encode() -> object:
        return model.get_image_embeddings(processor(PillowImage.fromarray(pixels), return_tensors="pt")["pixel_values"])

    return encode


def anymask_encoder(path: Path, pixels: np.ndarray, loading: Mapping[str, Any]) -> Callable[[], object]:
    """`loading` is what `load` takes, or the `format` and `dtype` of an export to be made first."""
    from anymask import Image, load
    from anymask.models.export import export

    if "format" in loading:
        folder = path.with_name("_".join(("sam_vit_b", *loading.values())))
        path, loading = folder if folder.exists() else export(path, folder, **loading), {}
    model, images = load(path, device="cpu", **loading), [Image(pixels)]
    return lambda: model.encode(images)


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """The weights of one of our models, whatever holds them."""
    for part in vars(model).values():
        if isinstance(part, torch.nn.Module):
            yield from part.parameters()


def dense_rles(masks: np.ndarray) -> list[Any]:
    """One at a time, so that no second copy of all masks is made."""
    from anymask.ops import rle

    return [rle.encode(mask[None])[0] for mask in masks]


def plain(one: Mapping[str, Any]) -> dict[str, Any]:
    """An RLE that JSON can hold."""
    counts = one["counts"]
    return {"size": list(one["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


CONTENDERS: dict[str, Callable[..., Contender]] = {
    "segment_anything": load_segment_anything,
    "transformers": load_transformers,
    "ultralytics": load_ultralytics,
    "anymask": load_anymask,
    "anymask exact": lambda path, **loading: load_anymask(path, exact=True, **loading),
}
