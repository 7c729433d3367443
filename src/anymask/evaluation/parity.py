"""Our path against transformers' own (processor, forward, post-processing), on weights that the user has.

`anymask models verify` shows the differences: preprocessing, prompts, decoder and placing of masks all count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import (
    Sam2ImageProcessor,
    Sam2Processor,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessorPil,
    SamProcessor,
)

from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model
from anymask.models.sam3 import Sam3
from anymask.prompting import predict
from anymask.types import Features, Image, Masks, Prompt

LOGIT_TOLERANCE = 1e-3  # of low-resolution logits, in float32
KNOWN = {  # why both paths may differ although ours is right
    "SamHQModel": "transformers 5.23 upscales the image as it was before HQ-SAM's decoder; ours is the authors' code"
}
SIZES = ((300, 400), (411, 233), (257, 513))  # of the drawn pictures: landscape, portrait, odd


@dataclass(frozen=True)
class Difference:
    """How far the two paths are apart for one prompt on one picture."""

    picture: str
    prompt: str
    logits: float  # the largest difference of low-resolution logits, from the same resized pixels
    predicted_iou: float  # likewise
    resized_logits: float  # and from pixels that each has resized itself: transformers rounds them for SAM 2
    mask_iou: float  # of those masks, in original pixels


@dataclass(frozen=True)
class _Answer:
    """What transformers gives for one prompt: the single mask."""

    logits: Float[Tensor, "lh lw"]
    predicted_iou: float
    mask: Bool[np.ndarray, "h w"]


def verify(model: Model, images: Sequence[Image] = ()) -> Iterator[Difference]:
    """One record for each picture and kind of prompt; without `images` on three drawn pictures.

    Raises ValueError for a model that transformers has no path for (pocket).
    """
    if not isinstance(model, PromptableModel) or model.family == "pocket" or not model.capabilities.points:
        raise ValueError(
            f"{model.name} has no path for points in transformers to compare with: give a sam, mobile or sam2 model,"
            " or a sam3 with its tracker"
        )
    for image in images or [drawn(size) for size in SIZES]:
        features = model.encode([image])[0]
        stock = _StockPath(model, image)
        for kind, prompt in _prompts(model, features, image).items():
            yield _compared(image, kind, predict(model, features, [prompt], multimask_output=False), *stock(prompt))


def drawn(size: tuple[int, int]) -> Image:
    """A disk and a bar before a shaded ground, the same each time."""
    h, w = size
    y, x = np.mgrid[:h, :w].astype(np.float32)
    ground = np.stack([x / w * 200, y / h * 200, 120 + 60 * np.sin(x / 9) * np.cos(y / 7)], axis=-1)
    ground[np.hypot(x - 0.35 * w, y - 0.4 * h) < 0.2 * min(h, w)] = (220, 60, 40)
    ground[int(0.7 * h) : int(0.85 * h), int(0.2 * w) : int(0.9 * w)] = (30, 80, 210)
    return Image(ground.astype(np.uint8), name=f"drawn {w}x{h}")


def within_tolerance(difference: Difference) -> bool:
    """Whether both paths gave the same."""
    return difference.logits <= LOGIT_TOLERANCE and difference.predicted_iou <= LOGIT_TOLERANCE


def _prompts(model: PromptableModel, features: Features, image: Image) -> dict[str, Prompt]:
    h, w = image.size
    click, box = Prompt.point(0.35 * w, 0.4 * h), Prompt.box(0.15 * w, 0.6 * h, 0.93 * w, 0.9 * h)
    earlier = predict(model, features, [click], multimask_output=False)
    clicks = Prompt.points([(0.3 * w, 0.75 * h), (0.8 * w, 0.1 * h)], [1, 0])
    return {
        "one click": click,
        "click and negative click": clicks,
        "box": box,
        "box and clicks": box + clicks,
        "earlier mask and click": Prompt.refine(earlier) + click,
    }


def _compared(image: Image, kind: str, ours: Masks, same: _Answer, resized: _Answer) -> Difference:
    logits = torch.from_numpy(np.asarray(ours.logits)[0])
    union = int((ours.masks[0] | resized.mask).sum())
    return Difference(
        image.name,
        kind,
        logits=float((logits - same.logits).abs().max()),
        predicted_iou=abs(float(ours.scores[0]) - same.predicted_iou),
        resized_logits=float((logits - resized.logits).abs().max()),
        mask_iou=int((ours.masks[0] & resized.mask).sum()) / union if union else 1.0,
    )


class _StockPath:
    """transformers' processor and forward over the very network of our model; an image is embedded once."""

    def __init__(self, model: PromptableModel, image: Image) -> None:
        self.model, self.image = model, image
        self.network: Any = stock_network(model)
        self.processor = _processor(model)
        pixels = model.preprocess(image, model.frame(image.size))[None]
        self.same = self._embeddings(pixels)
        self.resized = self._embeddings(self.processor(image.pixels, return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def __call__(self, prompt: Prompt) -> tuple[_Answer, _Answer]:
        """From our pixels, and from the processor's."""
        given: dict[str, Any] = {}
        if len(prompt.point_coords):
            given["input_points"] = [[prompt.point_coords.tolist()]]
            given["input_labels"] = [[prompt.point_labels.tolist()]]
        if prompt.box_coords is not None:
            given["input_boxes"] = [[list(prompt.box_coords)]]
        inputs = self.processor(self.image.pixels, return_tensors="pt", **given)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        tensors = {name: self._moved(inputs[name]) for name in given}
        if prompt.mask_input is not None:
            tensors["input_masks"] = self._moved(torch.from_numpy(prompt.mask_input)[None, None])
        return self._answer(self.same, tensors, sizes), self._answer(self.resized, tensors, sizes)

    def _answer(self, embeddings: Mapping[str, Any], tensors: Mapping[str, Tensor], sizes: Sequence[Any]) -> _Answer:
        output = self.network(**embeddings, **tensors, multimask_output=False)
        logits = output.pred_masks[:, 0].float().cpu()
        masks = self.processor.image_processor.post_process_masks([logits[0][None]], *sizes)[0]
        return _Answer(logits[0, 0], float(output.iou_scores[0, 0, 0]), np.asarray(masks[0, 0]))

    @torch.inference_mode()
    def _embeddings(self, pixels: Tensor) -> dict[str, Any]:
        found = self.network.get_image_embeddings(self._moved(pixels))
        if isinstance(self.model, Sam3):  # transformers 5.23 adds it to a level that it then drops
            found[-1] = found[-1] + self.network.no_memory_embedding.reshape(1, -1, 1, 1)
        if not isinstance(self.network, SamHQModel):
            return {"image_embeddings": found}
        return {"image_embeddings": found[0], "intermediate_embeddings": found[1]}

    def _moved(self, value: Tensor) -> Tensor:
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else value.dtype)


def stock_network(model: PromptableModel) -> Any:
    """The network as transformers runs it, over the same weights: of SAM 3 the tracker with a ViT of its own."""
    if not isinstance(model, Sam3):
        return model.network
    tracker, config = model.tracker, model.network.config.tracker_config.to_dict()
    with torch.device("meta"):
        stock: Any = Sam3TrackerModel(Sam3TrackerConfig(**{**config, "model_type": "sam3_tracker"}))
    stock.vision_encoder.backbone = model.detector.vision_encoder.backbone
    stock.vision_encoder.neck = model.network.tracker_neck
    for name in ("shared_image_embedding", "prompt_encoder", "mask_decoder", "no_memory_embedding"):
        setattr(stock, name, getattr(tracker, name))
    return stock.eval()


def _processor(model: PromptableModel) -> Any:
    """As `from_pretrained` would make it; SAM 1's resizes with Pillow, like the original code."""
    side = model.input_size[0]
    square = {"height": side, "width": side}
    if model.family in ("sam", "mobile"):
        processor = SamHQProcessor if isinstance(model.network, SamHQModel) else SamProcessor
        return processor(SamImageProcessorPil(size={"longest_edge": side}, pad_size=square))
    if model.family == "sam2":
        return Sam2Processor(Sam2ImageProcessor(size=square))
    return Sam3TrackerProcessor(Sam3ImageProcessor(size=square))
