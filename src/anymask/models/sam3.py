"""SAM 3 through transformers: a tracker for points, boxes and masks, a detector for names and exemplars, one encoder.

Both read the same ViT, each through a neck of its own, so that an image is encoded once for all its prompts. SAM 3
LiteText, and detectors saved without the tracker, know names and exemplars only. Paper: SAM 3: Segment Anything with
Concepts (Carion et al., 2025).
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2 import functional as pictures
from transformers import AutoConfig, AutoModel

from anymask.models import sam3_detector, sam3_keys, sam3_text
from anymask.models.capabilities import SAM3, SAM3_DETECTOR
from anymask.models.checkpoints import building, in_dtype, load_strictly, read_config, read_folder, write_folder
from anymask.models.decode import PromptTensors, Stage
from anymask.models.devices import in_chunks
from anymask.models.promptable import Clicks, PromptableModel
from anymask.models.protocol import CheckpointError, Decoded, EncodedText, Grounded
from anymask.models.sam2 import answer_clicks_sam2, answer_sam2, shared_stage, stable_or_surest
from anymask.models.sam3_detector import LEVELS, Question, Shown
from anymask.models.sam3_words import Sam3Words
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Prompt, Size

VISUAL = "visual"  # the text of exemplars alone (sam3, `Sam3Processor.add_geometric_prompt`)
TEXTS_AT_ONCE = 4  # names answered together: each costs the detector about 0.5 GB of float32


class Sam3(PromptableModel):
    """`network` is `Sam3VideoModel` (detector, tracker, memory), or a detector: `Sam3Model`, `Sam3LiteTextModel`."""

    family: ClassVar[str] = "sam3"
    capabilities = SAM3
    network: Any

    def __init__(self, network: nn.Module, device: str = "cpu", name: str = "", source: Path = Path()) -> None:
        super().__init__(network, device, name)
        self.source = source  # where the tokenizer is looked for
        side = self.detector.config.vision_config.image_size
        self.input_size = (side, side)
        if self.tracker is None:
            self.capabilities, fine = (
                SAM3_DETECTOR,
                4 * side // self.detector.config.vision_config.backbone_config.patch_size,
            )
            self.mask_size = (fine, fine)
        else:
            self.mask_size = self.tracker.prompt_encoder.mask_input_size

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "Sam3":
        """A folder as facebook/sam3 is, or of a detector alone. Raises CheckpointError."""
        values = read_config(folder, sam3_keys.MODEL_TYPES)
        with building(folder):
            network = _build(values)
        return cls._filled(network, _official(read_folder(folder)), folder, device, dtype, name)

    @classmethod
    def from_original(
        cls, state: dict[str, Tensor], kind: str, path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "Sam3":
        """The tensors of `sam3.pt`, of a kind that `sam3_keys.recognise` gave. Raises CheckpointError."""
        network = _build(sam3_keys.config_of(kind))
        return cls._filled(network, sam3_keys.renamed(state, kind), path, device, dtype, name)

    @property
    def detector(self) -> Any:
        """`Sam3Model`, or its light sister."""
        return getattr(self.network, "detector_model", self.network)

    @property
    def tracker(self) -> Any:
        """The heads for points, boxes and masks; None if the weights have none."""
        return getattr(self.network, "tracker_model", None)

    @cached_property
    def tokenizer(self) -> Any:
        """Names to word pieces, read when the first text comes. Raises CheckpointError if there is none."""
        return sam3_text.read_tokenizer(self.source)

    @cached_property
    def words(self) -> Sam3Words:
        """Its word vectors, for learned ones to stand among."""
        return Sam3Words(self)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The ViT with the tracker's neck, and its heads; of a detector alone only the encoder."""
        if self.tracker is None:
            return {"encoder": self.detector.vision_encoder}
        encoder = nn.ModuleDict({"vit": self.detector.vision_encoder.backbone, "neck": self.network.tracker_neck})
        heads = {"prompt_encoder": self.tracker.prompt_encoder, "decoder": self.tracker.mask_decoder}
        return {"encoder": encoder, **heads}

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """Stretched to the square input."""
        return Frame.stretched(size, self.input_size, crop_box)

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 ih iw"]:
        """Resized as uint8 with antialiasing, then from -1 to 1 (sam3, `Sam3Processor`)."""
        x0, y0, x1, y1 = frame.crop_box
        pixels = torch.from_numpy(image.pixels[y0:y1, x0:x1].transpose(2, 0, 1).copy())
        square: Tensor = pictures.resize(pixels, list(frame.input_size), antialias=True)
        return square.float() / 127.5 - 1

    def embed(self, pixels: Float[Tensor, "b 3 ih iw"]) -> dict[str, Tensor]:
        """The pyramids of both necks; the tracker's as its decoder takes them, the "no memory" token added.

        As the original and `Sam3TrackerVideoModel`; `Sam3TrackerModel` (5.23) adds it to a level that it then drops.
        """
        vision = self.detector.vision_encoder(pixels)
        features = {f"detector_{i}": vision.fpn_hidden_states[i] for i in range(LEVELS)}
        if self.tracker is None:
            return features
        cells = vision.last_hidden_state.transpose(1, 2).unflatten(2, features["detector_2"].shape[-2:])
        (fine, middle, coarse, *_), _ = self.network.tracker_neck(cells)
        decoder = self.tracker.mask_decoder
        features["tracker_0"], features["tracker_1"] = decoder.conv_s0(fine), decoder.conv_s1(middle)
        features["tracker_2"] = coarse + self.tracker.no_memory_embedding.reshape(1, -1, 1, 1)
        return features

    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As transformers' trackers: a mask alone comes with an empty click."""
        sparse, dense = self._embed_prompts(prompts)
        levels = [features[f"tracker_{i}"][image_rows] for i in range(LEVELS)]
        return answer_sam2(self.tracker, levels, sparse[:, 0], dense)

    def answer_clicks(
        self, features: Mapping[str, Tensor], clicks: Clicks
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `PromptableModel.answer_clicks`."""
        return answer_clicks_sam2(self.tracker, [features[f"tracker_{i}"] for i in range(LEVELS)], clicks)

    def padding(self, points: int, boxed: bool) -> int:
        """One beside anything, and one in place of nothing."""
        return 1 if points or boxed else 2

    def choose(
        self, logits: Float[Tensor, "n t lh lw"], predicted_iou: Float[Tensor, "n k"], multimask_output: bool
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """A single mask that is unstable gives way in eval mode."""
        if multimask_output or self.tracker.training:
            return super().choose(logits, predicted_iou, multimask_output)
        return stable_or_surest(self.tracker.mask_decoder, logits, predicted_iou)

    def stage(self, features: Features, multimask_output: bool = True) -> Stage:
        """Candidates without copies of the image in float32. Raises ValueError if the weights have no tracker."""
        self._check_tracker()
        whole = self._whole_stage(features, multimask_output)
        if not multimask_output or not self._can_share:
            return whole
        levels = [features.tensors[f"tracker_{i}"] for i in range(LEVELS)]
        position = self.tracker.get_image_wide_positional_embeddings()
        return shared_stage(
            self.tracker, levels, position, lambda prompts: self._embed_prompts(prompts)[0][:, 0], whole
        )

    def decode(
        self, features: Sequence[Features], prompts: Sequence[Sequence[Prompt]], multimask_output: bool | None = None
    ) -> list[Decoded]:
        """As `Model.decode`. Raises ValueError if the weights have no tracker."""
        self._check_tracker()
        own = [replace(one, tensors=_of("tracker", one)) for one in features]  # the base stacks what it is given
        return super().decode(own, prompts, multimask_output)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[Prompt]) -> EncodedText:
        """Names or learned concepts, and exemplars: those of other images are encoded here, once an image."""
        if not prompts:
            return EncodedText((), {"questions": ()})
        names = tuple(prompt.title for prompt in prompts)
        questions = []
        for prompt, tokens in zip(prompts, self._words(prompts), strict=True):
            here = [one for one in prompt.exemplars if one.image is None]
            elsewhere = self._seen_elsewhere(prompt)
            questions.append(Question(torch.cat([tokens, *elsewhere]), Shown.of(here), bool(elsewhere)))
        return EncodedText(names, {"questions": tuple(questions)})

    @torch.inference_mode()
    def ground(self, features: Features, text: EncodedText, instances: bool = True) -> list[Grounded]:
        """The instances of each name worth a look, surest first, and the union from the semantic head."""
        questions: tuple[Question, ...] = text.tensors["questions"]
        own, found = _of("detector", features), dict[int, Grounded]()

        def run(rows: Sequence[int]) -> dict[int, Grounded]:
            output = sam3_detector.detect(self.detector, own, features.frame, [questions[i] for i in rows])
            return {i: sam3_detector.grounded(output, k, instances) for k, i in enumerate(rows)}

        by_kind = sorted(range(len(questions)), key=lambda i: questions[i].kind)
        for _, rows in itertools.groupby(by_kind, key=lambda i: questions[i].kind):
            for part in in_chunks(run, list(rows), TEXTS_AT_ONCE, self.device):
                found.update(part)
        return [found[i] for i in range(len(questions))]

    def save(self, folder: Path) -> None:
        """config.json, model.safetensors and, where there is one, the tokenizer, laid out as facebook/sam3.

        Not by `save_pretrained`, which in transformers 5.23 puts `tracker_model.` twice before the tracker's tensors.
        """
        write_folder(folder, self.network, {**self.config, "architectures": [type(self.network).__name__]})
        with suppress(CheckpointError):  # no tokenizer was found
            self.tokenizer.save_pretrained(folder)

    @property
    def decoder_features(self) -> tuple[str, ...]:
        """Those of the tracker."""
        return tuple(f"tracker_{i}" for i in range(LEVELS))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Those of the detector, and of the tracker if there is one."""
        detector = tuple(f"detector_{i}" for i in range(LEVELS))
        return detector if self.tracker is None else (*detector, *self.decoder_features)

    @classmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "Sam3":
        """As `PromptableModel.without_weights`."""
        return cls(_build(config), "meta", name)

    @property
    def config(self) -> dict[str, Any]:
        """As transformers writes it."""
        values: dict[str, Any] = self.network.config.to_dict()
        return values

    @classmethod
    def _filled(
        cls, network: Any, state: Mapping[str, Tensor], path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "Sam3":
        load_strictly(network, in_dtype(state, dtype), path, f"{network.config.model_type} of its size")
        return cls(network, device, name, path)

    def _check_tracker(self) -> None:
        if self.tracker is None:
            raise ValueError(
                f"{self.name} holds the detector of SAM 3 alone: it knows names and exemplars; for points, boxes and"
                " masks use facebook/sam3, or another model"
            )

    def _embed_prompts(self, prompts: PromptTensors) -> tuple[Float[Tensor, "n 1 k d"], Float[Tensor, "n d h w"]]:
        points, labels = prompts.point_coords, prompts.point_labels
        if not points.shape[1] and prompts.boxes is None:
            points, labels = points.new_zeros(len(prompts), 1, 2), labels.new_full((len(prompts), 1), -1)
        sparse, dense = self.tracker.prompt_encoder(
            input_points=points[:, None] if points.shape[1] else None,
            input_labels=labels[:, None] if points.shape[1] else None,
            input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],
            input_masks=None if prompts.masks is None else prompts.masks[:, None].to(self.dtype),
        )
        return sparse.to(self.dtype), dense

    def _words(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The text tokens of each prompt, all through the text transformer at once."""
        learned = [self.words.written(prompt) if prompt.embedded else None for prompt in prompts]
        pieces = [self._pieces(prompt, own) for prompt, own in zip(prompts, learned, strict=True)]
        ids = torch.cat([ids for ids, _ in pieces]).to(self.device)
        lengths = [length for _, of_rows in pieces for length in of_rows]
        return sam3_text.encode_words(self.detector, ids, lengths, learned)

    def _pieces(self, prompt: Prompt, learned: Tensor | None) -> tuple[Tensor, list[int]]:
        if learned is None:
            return sam3_text.word_pieces(self.tokenizer, [prompt.title or VISUAL])
        return sam3_text.blank_pieces(self.tokenizer, len(learned))

    def _seen_elsewhere(self, prompt: Prompt) -> list[Tensor]:
        """The tokens of exemplars in other images."""
        images = {id(one.image): one.image for one in prompt.exemplars if one.image is not None}
        tokens = []
        for key, image in images.items():
            features = self.encode([image])[0]
            shown = Shown.of([one for one in prompt.exemplars if id(one.image) == key])
            own = _of("detector", features)
            tokens.append(sam3_detector.exemplar_tokens(self.detector, own, features.frame, shown))
        return tokens


class _WithoutWeights(TorchFunctionMode):
    """Modules built under it have weights without memory, to be filled, but all that they compute themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **({**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}))


def _build(config: Mapping[str, Any]) -> Any:
    """The network without weights."""
    with _WithoutWeights():
        return AutoModel.from_config(AutoConfig.for_model(**config))


def _of(reader: str, features: Features) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in features.tensors.items() if name.startswith(reader)}


def _official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in facebook/sam3, also from folders where transformers 5.23 has put a prefix twice."""
    twice, once = "tracker_model.tracker_model.", "tracker_model."
    return {once + key.removeprefix(twice) if key.startswith(twice) else key: value for key, value in state.items()}
