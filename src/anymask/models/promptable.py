"""What sam, mobile, sam2 and the tracker of sam3 share: images one by one through the encoder, then prompts in chunks.

A family is a subclass that says how an image lies in its input (`frame`, `preprocess`), runs its encoder (`embed`) and
its prompt encoder and mask decoder (`answers`), and which of a decoder's masks to take (`choose`). Training calls the
same, with gradients. `answer_clicks` is `answers` in a form of which a graph can be made (`anymask.models.graphs`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anymask.models.capabilities import knows_no_text
from anymask.models.decode import PromptTensors, Stage, WholeStage
from anymask.models.devices import in_chunks, memory_for
from anymask.models.protocol import Capabilities, Decoded, EncodedText, Grounded
from anymask.ops import resize
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Prompt, Size

MASK_LOGIT = 10.0  # of a bool mask given as a prompt, as in SAM 2 (`SAM2Base._use_mask_as_output`)
CANDIDATES = 3  # of an ambiguous prompt: whole, part, subpart
MANY = 6  # prompts alike on one image from which on a stage of its own pays
CHUNK = 16  # prompts decoded at once: stock decoders copy the image embedding for each, and larger chunks are slower
CORNERS = (2, 3)  # labels of the corners of a box as clicks (sam2, `SAM2ImagePredictor._predict`)
PADDING = -1  # label of an empty click


@dataclass(frozen=True)
class Clicks:
    """n prompts of any kind in one form: boxes are two clicks, empty ones stand as in training, masks have a flag."""

    coords: Float[Tensor, "n p 2"]
    labels: Int[Tensor, "n p"]
    masks: Float[Tensor, "n lh lw"]
    has_mask: Float[Tensor, "n"]  # 1 or 0


@dataclass(frozen=True)
class Runtime:
    """What computes in place of a family's own `embed` and `answers`; None leaves that half as it is, eager."""

    name: str = "eager"
    embed: Callable[[Tensor], dict[str, Tensor]] | None = None
    answers: Callable[[Mapping[str, Tensor], Tensor, PromptTensors], tuple[Tensor, Tensor]] | None = None


class PromptableModel(ABC):
    """A network of SAM's form behind the protocol. `decode` gives any company of prompts what each gives alone."""

    family: ClassVar[str]
    capabilities: Capabilities
    mask_logit: ClassVar[float] = MASK_LOGIT
    chunk: ClassVar[int] = CHUNK
    mask_size: Size = (256, 256)  # of mask prompts, and of the logits that come back
    input_size: Size = (1024, 1024)
    runtime: Runtime = Runtime()
    graphs: tuple[Path, ...] = ()  # of an exported model: the files that hold what its network does not

    def __init__(self, network: nn.Module, device: str = "cpu", name: str = "") -> None:
        self.name, self.device = name or self.family, device
        self.network = network.to(device).eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.network.parameters()).dtype

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """`encoder`, `prompt_encoder` and `decoder`: what can be trained apart."""

    def set_input_size(self, size: Size) -> None:
        """Fits the network to another input, for all images from now on; what is resampled for it stays so.

        Raises ValueError for a size, or a family, that cannot be.
        """
        raise ValueError(f"image_size is for sam, mobile, sam2 and pocket: {self.name} has one input size alone")

    def set_window_size(self, cells: int) -> None:
        """Other windows of the encoder's attention, in cells. Raises ValueError."""
        raise ValueError(f"window_size is for sam: the windows of {self.name} cannot be changed")

    @abstractmethod
    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """How an image (or a crop of it) lies in the input."""

    @abstractmethod
    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 ih iw"]:
        """The normalised input, float32, on the CPU."""

    @abstractmethod
    def embed(self, pixels: Float[Tensor, "b 3 ih iw"]) -> dict[str, Tensor]:
        """The encoder's features by name; each tensor begins with the axis of the images. Differentiable."""

    @abstractmethod
    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """What every mask token says of prompt i on image `image_rows[i]` of `features`: logits, predicted IoU."""

    @abstractmethod
    def answer_clicks(
        self, features: Mapping[str, Tensor], clicks: Clicks
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `answers`, on the one image of `features`; what is computed does not hang on what is in `clicks`."""

    @abstractmethod
    def padding(self, points: int, boxed: bool) -> int:
        """How many empty clicks stand beside so many points and a box."""

    @property
    @abstractmethod
    def decoder_features(self) -> tuple[str, ...]:
        """The names of the features that points, boxes and masks are answered with."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of all that `embed` gives."""
        return self.decoder_features

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `config.json` says; `without_weights` takes it."""

    @classmethod
    @abstractmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "PromptableModel":
        """The family on the meta device, for graphs that hold the weights."""

    def choose(
        self, logits: Float[Tensor, "n t lh lw"], predicted_iou: Float[Tensor, "n k"], multimask_output: bool
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """Of what `answers` gives: the first token is for a single mask, the others are candidates."""
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return logits[:, chosen], predicted_iou[:, chosen]

    def respond(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        prompts: PromptTensors,
        multimask_output: bool,
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """Mask logits and predicted IoU of prompt i on image `image_rows[i]` of `features`. Differentiable if eager."""
        answers = self.runtime.answers or self.answers
        return self.choose(*answers(features, image_rows, prompts), multimask_output)

    def clicks(self, prompts: PromptTensors) -> Clicks:
        """The same prompts in the form of `answer_clicks`."""
        n, boxed = len(prompts), prompts.boxes is not None
        coords, labels = prompts.point_coords, prompts.point_labels
        empty = self.padding(coords.shape[1], boxed)
        if prompts.boxes is not None:
            coords = torch.cat([coords, prompts.boxes.view(n, 2, 2)], dim=1)
            labels = torch.cat([labels, labels.new_tensor(CORNERS).expand(n, 2)], dim=1)
        masks = coords.new_zeros(n, *self.mask_size) if prompts.masks is None else prompts.masks
        return Clicks(
            torch.cat([coords, coords.new_zeros(n, empty, 2)], dim=1),
            torch.cat([labels, labels.new_full((n, empty), PADDING)], dim=1),
            masks,
            coords.new_full((n,), prompts.masks is not None),
        )

    def stage(self, features: Features, multimask_output: bool = True) -> Stage:
        """The decoder made ready for many prompts on one image, to give three candidates of each or the single mask."""
        return self._whole_stage(features, multimask_output)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes config and weights as transformers does, so that `load` and others read them."""

    @torch.inference_mode()
    def encode(self, images: Sequence[Image], crop_boxes: Sequence[CropBox] | None = None) -> list[Features]:
        """Features of each image, one after another, so that memory stays flat."""
        boxes = [None] * len(images) if crop_boxes is None else crop_boxes
        return [self._encode(image, box) for image, box in zip(images, boxes, strict=True)]

    @torch.inference_mode()
    def decode(
        self, features: Sequence[Features], prompts: Sequence[Sequence[Prompt]], multimask_output: bool | None = None
    ) -> list[Decoded]:
        """As `Model.decode`; prompts of one kind are decoded together, `chunk` at a time, less where memory ends."""
        if not features:
            return []
        if others := sorted({one.model for one in features} - {self.name}):
            raise ValueError(f"features for {self.name} must be its own, got those of {', '.join(others)}")
        owners = [i for i, some in enumerate(prompts) for _ in some]
        flat = [prompt for some in prompts for prompt in some]
        self._check(flat)
        with memory_for("hold the features of all images", self.device):
            stacked = in_one_batch([one.tensors for one in features])

        def run(rows: Sequence[int]) -> _Answer:
            image_rows = torch.tensor([owners[i] for i in rows], device=self.device)
            frames = [features[owners[i]].frame for i in rows]
            return _Answer(rows, *self._answer(stacked, image_rows, frames, [flat[i] for i in rows], multimask_output))

        def in_stages(stage: Stage, frame: Frame, rows: Sequence[int]) -> _Answer:
            return _Answer(rows, *self._answer_staged(stage, frame, [flat[i] for i in rows], multimask_output))

        answers = list[_Answer]()
        for group in alike(flat):
            few = list[int]()
            for owner, rows in _by_owner(group, owners).items():
                one = features[owner]
                stage = self._stage_for(one, flat[rows[0]], multimask_output) if len(rows) >= MANY else None
                if stage is None:
                    few += rows
                else:
                    answers += in_chunks(partial(in_stages, stage, one.frame), rows, stage.chunk, self.device)
            answers += in_chunks(run, few, self.chunk, self.device)
        none = _nothing(CANDIDATES if multimask_output else 1, self.mask_size)
        pairs = _in_order([none, *answers], [len(some) for some in prompts])
        limits = [self.limits(one.frame, some) for one, some in zip(features, prompts, strict=True)]
        return [Decoded(*pair, limit) for pair, limit in zip(pairs, limits, strict=True)]

    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        """Raises ValueError: the family knows no text."""
        raise knows_no_text(self.name)

    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        """Raises ValueError: the family knows no text."""
        raise knows_no_text(self.name)

    def limits(self, frame: Frame, prompts: Sequence[Prompt]) -> Float[np.ndarray, "n 4"] | None:
        """As `Decoded.limits`."""
        return None

    def tensors(self, frames: Sequence[Frame], prompts: Sequence[Prompt]) -> PromptTensors:
        """Prompts of one kind (`alike`), each with the frame of its image, in model pixels on the device."""
        points = np.stack([f.to_model(p.point_coords) for f, p in zip(frames, prompts, strict=True)])
        labels = torch.from_numpy(np.stack([p.point_labels for p in prompts])).to(self.device)
        boxes, masks = None, None
        if prompts[0].box_coords is not None:
            corners = np.asarray([p.box_coords for p in prompts], np.float32).reshape(-1, 2, 2)
            boxes = np.stack([f.to_model(box).reshape(4) for f, box in zip(frames, corners, strict=True)])
        if prompts[0].mask_input is not None:
            pairs = zip(frames, prompts, strict=True)
            masks = np.stack(
                [
                    mask_logits(p.mask_input, f, self.mask_size, self.mask_logit)
                    for f, p in pairs
                    if p.mask_input is not None
                ]
            )
        return PromptTensors(
            self._moved(points), labels, *(None if x is None else self._moved(x) for x in (boxes, masks))
        )

    @property
    def _can_share(self) -> bool:
        """Whether the decoder's own modules may be run in stages, whatever the runtime: an exported model has none."""
        weights = next(self.network.parameters())
        return weights.dtype == torch.float32 and not weights.is_meta

    def _whole_stage(self, features: Features, multimask_output: bool) -> WholeStage:

        def respond(prompts: PromptTensors) -> tuple[Tensor, Tensor]:
            rows = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
            return self.respond(features.tensors, rows, prompts, multimask_output)

        return WholeStage(respond, self.chunk)

    def _check(self, prompts: Sequence[Prompt]) -> None:
        if any(prompt.is_semantic for prompt in prompts):
            if not self.capabilities.text:
                self.encode_text(prompts)
            raise ValueError(
                f"for {self.name} a text or exemplar and a point, box or mask are two prompts: give them apart"
            )

    def _moved(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)

    def _encode(self, image: Image, crop_box: CropBox | None) -> Features:
        frame = self.frame(image.size, crop_box)
        pixels = self.preprocess(image, frame)[None].to(self.device, self.dtype)
        with memory_for(f"encode an image with {self.name}", self.device):
            return Features(self.name, frame, (self.runtime.embed or self.embed)(pixels))

    def _stage_for(self, features: Features, sample: Prompt, multimask_output: bool | None) -> Stage | None:
        """For many prompts alike `sample` on one image; None where it would save nothing."""
        if sample.mask_input is not None:
            return None
        choose = multimask_output is None and is_lone_click(sample)
        stage = self.stage(features, bool(multimask_output) or choose)
        return None if isinstance(stage, WholeStage) else stage

    def _answer_staged(
        self, stage: Stage, frame: Frame, prompts: Sequence[Prompt], multimask_output: bool | None
    ) -> tuple[Tensor, Tensor]:
        """As `_answer`, on one image; of candidates to choose among only the surest is made."""
        scored = stage.score(self.tensors([frame] * len(prompts), prompts))
        iou = scored.predicted_iou
        keep = torch.ones_like(iou, dtype=torch.bool)
        if multimask_output is None and is_lone_click(prompts[0]):
            keep = functional.one_hot(iou.argmax(dim=1), iou.shape[1]).bool()
        logits = scored.logits(keep).unflatten(0, (len(prompts), -1))
        return logits.float().cpu(), iou[keep].view(len(prompts), -1).float().cpu()

    def _answer(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        frames: Sequence[Frame],
        prompts: Sequence[Prompt],
        multimask_output: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """`respond`, with the choice among the candidates of a lone click (SAM, section 3: a click is ambiguous)."""
        choose = multimask_output is None and is_lone_click(prompts[0])
        tensors = self.tensors(frames, prompts)
        logits, iou = self.respond(features, image_rows, tensors, bool(multimask_output) or choose)
        if choose:
            logits, iou = surest(logits, iou)
        return logits.float().cpu(), iou.float().cpu()


def alike(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Rows that need no padding beside each other: as many points, box and mask or not, one name."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        given = (prompt.box_coords is None, prompt.mask_input is None)
        groups.setdefault((len(prompt.point_coords), *given, prompt.name, *map(id, prompt.learned)), []).append(i)
    yield from groups.values()


def _by_owner(rows: Sequence[int], owners: Sequence[int]) -> dict[int, list[int]]:
    """The rows of each image."""
    apart: dict[int, list[int]] = {}
    for row in rows:
        apart.setdefault(owners[row], []).append(row)
    return apart


def is_lone_click(prompt: Prompt) -> bool:
    """One point and nothing else."""
    return len(prompt.point_coords) == 1 and prompt.box_coords is None and prompt.mask_input is None


def surest(
    logits: Float[Tensor, "n c lh lw"], predicted_iou: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, "n 1 lh lw"], Float[Tensor, "n 1"]]:
    """Of each prompt's candidates the one of the highest predicted IoU."""
    best = predicted_iou.argmax(dim=1, keepdim=True)
    return logits.take_along_dim(best[..., None, None], 1), predicted_iou.take_along_dim(best, 1)


def mask_logits(mask: np.ndarray, frame: Frame, size: Size, logit: float = MASK_LOGIT) -> Float[np.ndarray, "lh lw"]:
    """A bool mask of the original image as logits in the frame; logits of an earlier result as they are."""
    if mask.dtype != bool:
        return np.asarray(resize.cover_logits(mask, size), np.float32)
    x0, y0, x1, y1 = frame.crop_box
    sides = zip(size, frame.content_size, frame.input_size, strict=True)
    h, w = (max(1, round(side * c / i)) for side, c, i in sides)
    logits = np.full(size, -logit, np.float32)
    logits[:h, :w] = (resize.cover(mask[y0:y1, x0:x1], (h, w)) - 0.5) * 2 * logit
    return logits


def as_in_square(coords: Float[Tensor, "*n 2"], size: Size) -> Float[Tensor, "*n 2"]:
    """Coordinates in an input of `size` for a prompt encoder that adds half a pixel and divides both by the height."""
    h, w = size
    if h == w:
        return coords
    return torch.stack([(coords[..., 0] + 0.5) * (h / w) - 0.5, coords[..., 1]], dim=-1)


def in_one_batch(features: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The features of all images in one batch; of a single image as they are, without a copy."""
    if len(features) == 1:
        return features[0]
    return {name: torch.cat([one[name] for one in features]) for name in features[0]}


class _Answer(NamedTuple):
    """What the prompts of some rows got."""

    rows: Sequence[int]
    logits: Tensor
    predicted_iou: Tensor


def _nothing(candidates: int, size: Size) -> _Answer:
    return _Answer((), torch.zeros(0, candidates, *size), torch.zeros(0, candidates))


def _in_order(answers: Sequence[_Answer], counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Logits and predicted IoU, made in groups, in the order of the prompts, and apart for each image."""
    order = torch.tensor([row for answer in answers for row in answer.rows], dtype=torch.long).argsort()
    logits = torch.cat([answer.logits for answer in answers])[order].split(list(counts))
    iou = torch.cat([answer.predicted_iou for answer in answers])[order].split(list(counts))
    return list(zip(logits, iou, strict=True))
