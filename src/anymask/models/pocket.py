"""The pocket model behind the protocol: prompts to tensors, tensors to masks, names to instances."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anymask.models.capabilities import presence_threshold
from anymask.models.decode import CANDIDATES, PromptTensors, Stage
from anymask.models.efficientnet import NORM_AFTER
from anymask.models.pocket_files import read_network, read_text_tower, save_pocket
from anymask.models.pocket_names import NameStage, PocketName
from anymask.models.pocket_network import (
    PocketConfig,
    PocketFeatures,
    PocketNetwork,
    PocketOutput,
    PocketPrompts,
    normalise,
)
from anymask.models.pocket_stage import ClickStage
from anymask.models.pocket_text import TextTower, Tokenizer
from anymask.models.pocket_words import PocketWords
from anymask.models.promptable import Clicks, PromptableModel, is_lone_click, surest
from anymask.models.protocol import Capabilities, EncodedText, Grounded, Thresholds
from anymask.ops import resize
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Prompt, Size

MASK_LOGIT = 6.0  # of a bool mask given as a prompt, as in training
MOST_STAGES = 6  # decodes of one prompt of many clicks
DRAWN_ON = ("s16", "s8", "s4")  # features that prompts are drawn on
CHUNK = 32  # prompts decoded at once: more gain nothing on a CPU and cost memory
# Names by the ROC of presence (docs/pocket.md), the rest by grids of clicks (docs/everything.md).
THRESHOLDS = Thresholds(presence=0.62, predicted_iou=0.4, stability=0.5, points_per_side=16)
NOTES = {
    "boxes": "the mask ends at the box, grown to its positive points",
    "negative points": "lower the mask around them",
    "text": "instances are peaks and parts of a score map, decoded with the name; the names seen in training work best",
    "negative text": "what a negative name claims more surely is taken away",
    "exemplars": "not understood",
}


class PocketModel(PromptableModel):
    """The embedded model. Build it with `anymask.load("pocket")`."""

    family: ClassVar[str] = "pocket"
    capabilities = Capabilities(text=True, concepts=True, named_prompts=True, thresholds=THRESHOLDS, notes=NOTES)
    mask_logit: ClassVar[float] = MASK_LOGIT
    chunk: ClassVar[int] = CHUNK
    network: PocketNetwork

    def __init__(
        self,
        network: PocketNetwork,
        read_text: Callable[[], tuple[TextTower, Tokenizer]],
        device: str = "cpu",
        name: str = "",
    ) -> None:
        super().__init__(network.to(memory_format=torch.channels_last), device, name)
        self._measure()
        self._read_text = read_text

    @classmethod
    def read(cls, path: Path, device: str = "cpu", name: str = "pocket") -> "PocketModel":
        """From a file of `save_pocket`; its text tower is read when the first text comes."""
        network = read_network(path)
        network.encoder.fold()
        return cls(network, lambda: read_text_tower(path), device, name)

    @cached_property
    def _text(self) -> tuple[TextTower, Tokenizer]:
        tower, tokenizer = self._read_text()
        return tower.to(self.device), tokenizer

    @property
    def tower(self) -> TextTower:
        """The text tower, frozen."""
        return self._text[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Names to word pieces."""
        return self._text[1]

    @cached_property
    def words(self) -> PocketWords:
        """Its word vectors, for learned ones to stand among."""
        return PocketWords(self)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """What can be trained apart; what draws prompts as maps counts as their encoder. Text is left alone."""
        network, decoder = self.network, self.network.decoder
        prompting = nn.ModuleList([decoder.prompt_encoder, decoder.drawing])
        others = [module for module in decoder.children() if module not in (*prompting, decoder.text_token)]
        return {
            "encoder": nn.ModuleList([network.encoder, network.pyramid]),
            "prompt_encoder": prompting,
            "decoder": nn.ModuleList(others),
        }

    def set_input_size(self, size: Size) -> None:
        """All that depends on it are coordinates, so that nothing is resampled."""
        self.network.set_image_size(size)
        self._measure()

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """An image, or a crop of it, is stretched over the input."""
        return Frame.stretched(size, self.input_size, crop_box)

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 ih iw"]:
        """The normalised input, on the CPU."""
        x0, y0, x1, y1 = frame.crop_box
        return normalise(resize.stretch(image.pixels[y0:y1, x0:x1], frame.input_size)[None])[0]

    def embed(self, pixels: Float[Tensor, "b 3 ih iw"]) -> dict[str, Tensor]:
        """The pyramid's features by name. Differentiable."""
        return dict(vars(self.network.encode(pixels.contiguous(memory_format=torch.channels_last))))

    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """All masks of the network."""
        output = self.run(features, image_rows, prompts)
        return output.logits, output.predicted_iou

    def answer_clicks(
        self, features: Mapping[str, Tensor], clicks: Clicks
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `PromptableModel.answer_clicks`, without a name."""
        levels = [features[name] for name in DRAWN_ON]
        return self.network.answer_clicks(levels, clicks.coords, clicks.labels, clicks.masks, clicks.has_mask > 0)

    @property
    def decoder_features(self) -> tuple[str, ...]:
        """The pyramid."""
        return DRAWN_ON

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The pyramid, and what names are looked for in."""
        return *DRAWN_ON, "text_s8"

    def padding(self, points: int, boxed: bool) -> int:
        """As in training, where a click, a box and SAM's own padding point are always there."""
        return 1 + (points == 0) + 2 * (not boxed)

    @classmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "PocketModel":
        """As `PromptableModel.without_weights`; it knows no names."""
        with torch.device("meta"):
            network = PocketNetwork(PocketConfig.read({key: config[key] for key in config if key != "model_type"}))
        return cls(network.eval(), _no_text, "meta", name)

    @property
    def config(self) -> dict[str, Any]:
        """The sizes of the network, under the name of the family."""
        return {"model_type": self.family, **asdict(self.network.config)}

    def stage(self, features: Features, multimask_output: bool = True) -> Stage:
        """Lone clicks share the image but for what is around them."""
        whole = self._whole_stage(features, multimask_output)
        if not multimask_output or not self._can_share:
            return whole
        return ClickStage(self.network, PocketFeatures(**features.tensors), self._whole, whole)

    def save(self, folder: Path) -> None:
        """Writes `pocket.safetensors` with the text tower, which `load` reads from the folder."""
        save_pocket(folder / "pocket.safetensors", _unfolded(self.network), self.tower, {"fine-tuned from": self.name})

    def limits(self, frame: Frame, prompts: Sequence[Prompt]) -> Float[np.ndarray, "n 4"]:
        """The box of each prompt, grown to its positive points; the whole image where there is none."""
        h, w = frame.size
        limits = np.tile(np.asarray([0, 0, w, h], np.float32), (len(prompts), 1))
        for i, prompt in enumerate(prompts):
            if prompt.box_coords is not None:
                inside = prompt.point_coords[prompt.point_labels == 1]
                corners = np.concatenate([np.asarray(prompt.box_coords, np.float32).reshape(2, 2), inside])
                limits[i] = [*corners.min(axis=0), *corners.max(axis=0)]
        return limits

    def tensors(self, frames: Sequence[Frame], prompts: Sequence[Prompt]) -> PromptTensors:
        """As the base's, with the tokens of the name that the prompts share."""
        tensors = super().tensors(frames, prompts)
        return replace(tensors, text=self._encode_texts(prompts[:1])[0]) if prompts[0].is_named else tensors

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        """Names through the text tower; a concept's learned vectors stand where its words would.

        Each with the presence from which on it counts: below, `ground` makes no instances of it.
        """
        tokens = self._encode_texts(prompts)
        presence = tuple(presence_threshold(self, prompt) for prompt in prompts)
        return EncodedText(tuple(prompt.title for prompt in prompts), {"tokens": tokens, "presence": presence})

    @torch.inference_mode()
    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        """As `pocket_names` finds them, those likely there; what is not made is far below 0, or has no row.

        With `instances` that goes by the presence that came with each name, else by one that is negligible.
        """
        pairs = zip(text.tensors["tokens"], text.tensors["presence"], strict=True)
        stage = NameStage(self.network, PocketFeatures(**features.tensors), THRESHOLDS.instance)
        return stage.ground([PocketName(tokens, presence) for tokens, presence in pairs], instances)

    def _measure(self) -> None:
        h, w = self.input_size = self.network.config.input_size
        self.mask_size = (h // 4, w // 4)

    def _stage_for(self, features: Features, sample: Prompt, multimask_output: bool | None) -> Stage | None:
        """For lone clicks without a name, whose answers are the candidates, or the surest of all four masks."""
        lone = is_lone_click(sample) and not sample.is_named
        if not lone or multimask_output is False or not self._can_share:
            return None
        chosen, whole = CANDIDATES if multimask_output else slice(None), self._whole_stage(features, True)
        return ClickStage(self.network, PocketFeatures(**features.tensors), self._whole, whole, chosen)

    def _check(self, prompts: Sequence[Prompt]) -> None:
        """A name may join points, boxes and masks."""

    def _answer(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        frames: Sequence[Frame],
        prompts: Sequence[Prompt],
        multimask_output: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """Stage by stage, each with the mask of the stage before; only the last gives several candidates.

        A lone click without a name takes the surest of all four masks.
        """
        *earlier, last = zip(*map(_stages, prompts), strict=True)
        masks = [prompt.mask_input for prompt in last]
        for stage in earlier:
            tensors = self.tensors(frames, _with_masks(stage, masks))
            masks = list(self._chosen(features, image_rows, tensors, stage[0], None)[0][:, 0].cpu().numpy())
        tensors = self.tensors(frames, _with_masks(last, masks))
        logits, iou = self._chosen(features, image_rows, tensors, last[0], multimask_output)
        return logits.cpu(), iou.cpu()

    def _chosen(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        tensors: PromptTensors,
        prompt: Prompt,
        multimask_output: bool | None,
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """Three candidates or one, for prompts alike `prompt`; a name is not for other runtimes."""
        answers = self.answers if prompt.is_named else self.runtime.answers or self.answers
        logits, iou = answers(features, image_rows, tensors)
        if multimask_output is None and is_lone_click(prompt) and not prompt.is_named:
            return surest(logits, iou)
        return self.choose(logits, iou, bool(multimask_output))

    def run(self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors) -> PocketOutput:
        """All that the network says of prompt i on image `image_rows[i]`. Differentiable."""
        return self.network.decode(PocketFeatures(**features), image_rows, self._whole(prompts))

    def _whole(self, prompts: PromptTensors) -> PocketPrompts:
        """The same prompts with what they lack as padding."""
        config, n, device = self.network.config, len(prompts), prompts.point_coords.device
        points, labels = prompts.point_coords, prompts.point_labels
        if not points.shape[1]:
            points, labels = points.new_zeros(n, 1, 2), labels.new_full((n, 1), -1)
        boxes, masks = prompts.boxes, prompts.masks
        text = points.new_zeros(0, config.text_width) if prompts.text is None else prompts.text
        slots = max(config.text_slots, len(text))
        return PocketPrompts(
            points=points,
            labels=labels,
            boxes=points.new_zeros(n, 4) if boxes is None else boxes,
            has_box=torch.full((n,), boxes is not None, device=device),
            masks=points.new_zeros(n, *self.mask_size) if masks is None else masks,
            has_mask=torch.full((n,), masks is not None, device=device),
            text_tokens=functional.pad(text, (0, 0, 0, slots - len(text))).expand(n, -1, -1),
            text_mask=(torch.arange(slots, device=device) < len(text)).expand(n, -1),
        )

    def _encode_texts(self, prompts: Sequence[Prompt]) -> tuple[Float[Tensor, "l t"], ...]:
        """Each name's tokens; names of one length go through the tower together, so that none is padded."""
        embeddings, found = [self._embedded(prompt) for prompt in prompts], dict[int, Tensor]()
        for length in {len(one) for one in embeddings}:
            alike = [i for i, one in enumerate(embeddings) if len(one) == length]
            whole = torch.ones(len(alike), length, dtype=torch.bool, device=self.device)
            tokens = self.tower.encode_embeddings(torch.stack([embeddings[i] for i in alike]), whole).tokens
            found.update(zip(alike, tokens, strict=True))
        return tuple(found[i] for i in range(len(prompts)))

    def _embedded(self, prompt: Prompt) -> Float[Tensor, "l c"]:
        """The words of a phrase and the vectors of its concepts, between the marks of beginning and end."""
        if not prompt.phrase:
            raise ValueError("a text prompt must have a name or a concept")
        return self.words.marked(self.words.written(prompt))


def _no_text() -> tuple[TextTower, Tokenizer]:
    raise ValueError("an exported pocket knows no names: use pocket itself")


@torch.no_grad()
def _unfolded(network: PocketNetwork) -> PocketNetwork:
    """A copy whose encoder has its batch norms, as files have it: where one was folded, a norm that adds its bias."""
    copy = PocketNetwork(network.config)
    copy.load_state_dict(network.state_dict(), strict=False)  # a folded encoder has biases in place of norms
    for name, module in network.encoder.named_modules():
        for norm_name, conv_names in NORM_AFTER.items():
            if isinstance(getattr(module, norm_name, None), nn.Identity):
                norm = getattr(copy.encoder.get_submodule(name), norm_name)
                norm.bias.copy_(getattr(module, conv_names[type(module).__name__]).bias)
                norm.running_var.fill_(1 - norm.eps)
    return copy


def _stages(prompt: Prompt) -> list[Prompt]:
    """Several clicks at once as if given one by one, a positive one first: so the network has learned them."""
    n, start = len(prompt.point_coords), 0 if prompt.box_coords is not None else 1
    if prompt.mask_input is not None or n <= start:
        return [prompt]
    order = np.argsort(np.arange(n) != int(np.argmax(prompt.point_labels)), kind="stable")
    coords, labels = prompt.point_coords[order], prompt.point_labels[order]
    counts = sorted({round(k) for k in np.linspace(start, n, min(MOST_STAGES, n - start + 1))})
    return [replace(prompt, point_coords=coords[:k], point_labels=labels[:k]) for k in counts]


def _with_masks(prompts: Sequence[Prompt], masks: Sequence[np.ndarray | None]) -> list[Prompt]:
    return [replace(prompt, mask_input=mask) for prompt, mask in zip(prompts, masks, strict=True)]
