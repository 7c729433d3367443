"""SAM 2, SAM 2.1 and EdgeTAM on images, through transformers' Sam2Model and EdgeTamModel.

The result for the same numbers is that of the sam2 package (`SAM2ImagePredictor`): a box is two clicks on its corners,
before the other clicks; a mask alone comes without any click, also without the empty one that transformers adds.
Paper: Ravi et al. 2024, SAM 2: Segment Anything in Images and Videos.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import EdgeTamConfig, EdgeTamModel, Sam2Config, Sam2Model

from anymask.models import sam2_keys
from anymask.models.capabilities import SAM2
from anymask.models.checkpoints import building, in_dtype, load_strictly, read_config, read_folder, write_folder
from anymask.models.decode import PromptTensors, SharedStage, Stage, WholeStage
from anymask.models.image_sizes import as_size, as_written, check_size
from anymask.models.mask_tokens import answer_tokens, dense_prompts
from anymask.models.promptable import CORNERS, Clicks, PromptableModel, as_in_square, surest
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Size

CONFIG_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
STRIDES = (4, 8, 16)  # of what the decoder reads
COARSEST = 32  # of the encoder's last stage
LEVELS = ("high_res_0", "high_res_1", "image_embedding")  # one for each stride
MASK_LIMIT = 32.0  # the sam2 package hands its low-resolution logits back clamped to this
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Sam2(PromptableModel):
    """Images only: the memory of the video model is left aside."""

    family: ClassVar[str] = "sam2"
    capabilities = SAM2
    network: Any  # Sam2Model or EdgeTamModel

    def __init__(self, network: nn.Module, device: str = "cpu", name: str = "") -> None:
        super().__init__(network, device, name)
        self._measure()

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "Sam2":
        """From a folder of transformers, of the image or the video model; raises CheckpointError."""
        config = read_config(folder, sam2_keys.MODEL_TYPES)
        with building(folder):
            network = _build(config["model_type"], _parts(config))
        state = sam2_keys.image_part(read_folder(folder))
        load_strictly(network, in_dtype(state, dtype), folder, f"{config['model_type']} as its config.json says")
        return cls(network, device, name)

    @classmethod
    def from_original(
        cls, state: dict[str, Tensor], kind: str, path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "Sam2":
        """From the tensors of an original file of a `kind` (`sam2_keys.recognise`); raises CheckpointError."""
        network = _build(kind, sam2_keys.config_of(kind))
        image_state = sam2_keys.image_part(sam2_keys.renamed(state, kind))
        load_strictly(network, in_dtype(image_state, dtype), path, f"{kind} of SAM 2")
        return cls(network, device, name)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """`encoder` has all that `embed` runs, so also two layers and a token that stand elsewhere in the network."""
        network = self.network
        lateral = {"conv_s0": network.mask_decoder.conv_s0, "conv_s1": network.mask_decoder.conv_s1}
        token = nn.ParameterList([network.no_memory_embedding])
        rest = {name: part for name, part in network.mask_decoder.named_children() if name not in lateral}
        return {
            "encoder": nn.ModuleDict({"vision_encoder": network.vision_encoder, "no_memory": token, **lateral}),
            "prompt_encoder": network.prompt_encoder,
            "decoder": nn.ModuleDict(rest),
        }

    def set_input_size(self, size: Size) -> None:
        """Hiera resamples its positions at every run; all else that depends on the size are coordinates."""
        check_size(size, self._multiple, self.name)
        if size != self.input_size:
            _fit(self.network, size)
            self._measure()

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """Stretched to the input."""
        return Frame.stretched(size, self.input_size, crop_box)

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 ih iw"]:
        """Averaged or bilinear in float, then ImageNet's mean and deviation (sam2, `SAM2Transforms`)."""
        x0, y0, x1, y1 = frame.crop_box
        pixels = torch.from_numpy(image.pixels[y0:y1, x0:x1].transpose(2, 0, 1).copy()).float() / 255
        stretched = functional.interpolate(pixels[None], frame.input_size, mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (stretched - mean) / std

    def embed(self, pixels: Float[Tensor, "b 3 ih iw"]) -> dict[str, Tensor]:
        """The three levels as the decoder takes them, the "no memory" token added to the last."""
        decoder = self.network.mask_decoder
        fine, middle, coarse = self.network.vision_encoder(pixels).fpn_hidden_states
        token = self.network.no_memory_embedding.reshape(1, -1, 1, 1)
        return dict(zip(LEVELS, (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse + token), strict=True))

    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """Unclamped logits, and IoU from 0 to 1."""
        sparse, dense = self._embed_prompts(prompts)
        finer = [features[level][_fewest(image_rows)] for level in LEVELS[:2]]
        return answer_sam2(self.network, [*finer, features[LEVELS[2]][image_rows]], sparse[:, 0], dense)

    def answer_clicks(
        self, features: Mapping[str, Tensor], clicks: Clicks
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `PromptableModel.answer_clicks`."""
        inside = replace(clicks, coords=as_in_square(clicks.coords, self.input_size))
        return answer_clicks_sam2(self.network, [features[level] for level in LEVELS], inside, MASK_LIMIT)

    def padding(self, points: int, boxed: bool) -> int:
        """Beside any click, the corners of a box included; none beside a mask alone."""
        return int(points > 0 or boxed)

    def choose(
        self, logits: Float[Tensor, "n t lh lw"], predicted_iou: Float[Tensor, "n k"], multimask_output: bool
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """A single mask that is unstable gives way in eval mode."""
        if multimask_output or self.network.training:
            return super().choose(logits, predicted_iou, multimask_output)
        return stable_or_surest(self.network.mask_decoder, logits, predicted_iou)

    def stage(self, features: Features, multimask_output: bool = True) -> Stage:
        """Candidates without copies of the image in float32."""
        whole = self._whole_stage(features, multimask_output)
        if not multimask_output or not self._can_share:
            return whole
        levels = [features.tensors[level] for level in LEVELS]
        position = self.network.get_image_wide_positional_embeddings()
        return shared_stage(
            self.network, levels, position, lambda prompts: self._embed_prompts(prompts)[0][:, 0], whole
        )

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors of the image model, also where the weights came with a memory."""
        write_folder(folder, self.network, {**self.config, "architectures": [type(self.network).__name__]})

    @property
    def decoder_features(self) -> tuple[str, ...]:
        """From fine to coarse."""
        return LEVELS

    @classmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "Sam2":
        """As `PromptableModel.without_weights`."""
        return cls(_build(config["model_type"], _parts(config)), "meta", name)

    @property
    def config(self) -> dict[str, Any]:
        """As transformers writes it."""
        values: dict[str, Any] = self.network.config.to_dict()
        return values

    @property
    def _multiple(self) -> int:
        """The coarsest of the four stages must come out whole, and so must the windows of the first positions."""
        windows = getattr(self.network.vision_encoder.backbone, "pos_embed_window", None)
        return COARSEST if windows is None else math.lcm(COARSEST, STRIDES[0] * windows.shape[-1])

    def _measure(self) -> None:
        prompts = self.network.prompt_encoder
        h, w = prompts.image_embedding_size
        self.input_size, self.mask_size = (h * STRIDES[-1], w * STRIDES[-1]), tuple(prompts.mask_input_size)

    def _embed_prompts(self, prompts: PromptTensors) -> tuple[Float[Tensor, "n 1 k d"], Float[Tensor, "n d gh gw"]]:
        points, labels = prompts.point_coords, prompts.point_labels
        if prompts.boxes is not None:
            corners = labels.new_tensor(CORNERS).expand(len(prompts), 2)
            points = torch.cat([prompts.boxes.reshape(-1, 2, 2), points], dim=1)
            labels = torch.cat([corners, labels], dim=1)
        points = as_in_square(points, self.input_size)
        masks = prompts.masks
        clicked = points.shape[1] > 0
        sparse, dense = self.network.prompt_encoder(
            input_points=points[:, None] if clicked else None,
            input_labels=labels[:, None] if clicked else None,
            input_boxes=None,
            input_masks=None if masks is None else masks[:, None].clamp(-MASK_LIMIT, MASK_LIMIT).to(self.dtype),
        )
        if sparse is None:
            sparse = dense.new_zeros(len(prompts), 1, 0, dense.shape[1])
        return sparse.to(self.dtype), dense


def shared_stage(
    network: Any,
    levels: Sequence[Tensor],
    position: Tensor,
    embed: Callable[[PromptTensors], Tensor],
    whole: WholeStage,
) -> SharedStage:
    """Of a mask decoder of SAM 2's form; `levels` are the features of the one image from fine to coarse."""
    decoder = network.mask_decoder
    *finer, image = (level[0] for level in levels)
    image = image + network.prompt_encoder.no_mask_embed.weight[0][:, None, None]
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    return SharedStage(decoder, own, 1, image, position[0], embed, whole, finer)


def answer_sam2(
    network: Any, levels: Sequence[Tensor], sparse: Float[Tensor, "n l c"], dense: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
    """All masks of a mask decoder of SAM 2's form; `levels` are features from fine to coarse, one for all or each."""
    decoder = network.mask_decoder
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    *finer, image = levels
    position = network.get_image_wide_positional_embeddings().to(image.dtype)
    return answer_tokens(decoder, own, 1, image + dense, position, sparse, finer)


def answer_clicks_sam2(
    network: Any, levels: Sequence[Tensor], clicks: Clicks, mask_limit: float = float("inf")
) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
    """As `answer_sam2`, with the prompts as clicks; masks are clamped to `mask_limit`."""
    encoder = network.prompt_encoder
    sparse = encoder._embed_points(clicks.coords[:, None], clicks.labels[:, None], pad=False)[:, 0]
    dense = dense_prompts(encoder, clicks, mask_limit)
    return answer_sam2(network, levels, sparse.to(dense.dtype), dense)


def stable_or_surest(
    decoder: Any, logits: Float[Tensor, "n t lh lw"], predicted_iou: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n 1 lh lw"], Float[Tensor, "n 1"]]:
    """The single mask, or the surest candidate where it is not stable (sam2, `_dynamic_multimask_via_stability`)."""
    if not decoder.dynamic_multimask_via_stability:
        return logits[:, :1], predicted_iou[:, :1]
    delta = decoder.dynamic_multimask_stability_delta
    inner, outer = ((logits[:, 0] > limit).flatten(1).sum(dim=1).float() for limit in (delta, -delta))
    stable = torch.where(outer > 0, inner / outer, 1.0) >= decoder.dynamic_multimask_stability_thresh
    other_logits, other_iou = surest(logits[:, 1:], predicted_iou[:, 1:])
    return (
        torch.where(stable[:, None, None, None], logits[:, :1], other_logits),
        torch.where(stable[:, None], predicted_iou[:, :1], other_iou),
    )


def _fewest(image_rows: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
    """One row where all are the same: the decoder adds its features to every prompt, without a copy for each."""
    return image_rows[:1] if bool((image_rows == image_rows[0]).all()) else image_rows


def _parts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {part: config[part] for part in CONFIG_PARTS if part in config}


def _fit(network: Any, size: Size) -> None:
    """Makes the prompt encoder take prompts in an input of `size`, and the config say so (`as_in_square`)."""
    config, prompts = network.config, network.prompt_encoder
    grids = [[size[0] // stride, size[1] // stride] for stride in STRIDES]
    prompts.input_image_size = size[0]
    prompts.mask_input_size, prompts.image_embedding_size = tuple(grids[0]), tuple(grids[-1])
    network.backbone_feature_sizes = config.vision_config.backbone_feature_sizes = grids
    config.prompt_encoder_config.image_size = as_written(size)
    if hasattr(config.vision_config.backbone_config, "image_size"):  # not RepViT
        config.vision_config.backbone_config.image_size = list(size)


def _build(kind: str, config: dict[str, Any]) -> Sam2Model | EdgeTamModel:
    """The network without weights. An input that is no square is one that `save` wrote: transformers builds squares."""
    written = config.get("prompt_encoder_config", {}).get("image_size")
    if isinstance(written, list):
        prompts = {**config["prompt_encoder_config"], "image_size": written[0]}
        network = _build(kind, {**config, "prompt_encoder_config": prompts})
        _fit(network, as_size(written))
        return network
    edge = kind.startswith(sam2_keys.EDGETAM)
    with torch.device("meta"):
        return EdgeTamModel(EdgeTamConfig(**config)) if edge else Sam2Model(Sam2Config(**config))
