"""SAM 1 and HQ-SAM through transformers' SamModel and SamHQModel: base, large, huge, and fine-tunes such as MedSAM.

Papers: Kirillov et al., Segment Anything (2023); Ke et al., Segment Anything in High Quality (2023). MobileSAM is the
same with another encoder (`anymask.models.mobile`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel
from transformers.models.sam.modeling_sam import SamPositionalEmbedding
from transformers.models.sam_hq.modeling_sam_hq import SamHQMaskDecoder, SamHQPositionalEmbedding

from anymask.models.capabilities import SAM
from anymask.models.checkpoints import (
    POSITION,
    building,
    in_dtype,
    load_strictly,
    read_config,
    read_folder,
    write_folder,
)
from anymask.models.decode import CANDIDATES, SINGLE, PromptTensors, SharedStage, Stage
from anymask.models.image_sizes import as_size, check_size
from anymask.models.mask_tokens import answer_tokens, dense_prompts, masks_of, through_transformer
from anymask.models.promptable import Clicks, PromptableModel, as_in_square
from anymask.models.sam_keys import HIGH_QUALITY, MODEL_TYPES, config_of, image_size, renamed, with_shared_position
from anymask.models.sam_layers import with_lean_layers
from anymask.models.sam_sizes import fit_encoder, fit_heads, fit_windows
from anymask.ops.grids import CropBox
from anymask.types import Features, Frame, Image, Size

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of RGB, 0 to 255 (segment-anything, `build_sam`)
PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(PromptableModel):
    """SAM 1, or HQ-SAM, whose masks are SAM's plus those of its high-quality token, as in its authors' default."""

    family: ClassVar[str] = "sam"
    capabilities = SAM
    network: Any  # SamModel, SamHQModel, or a module with the same parts

    def __init__(self, network: nn.Module, device: str = "cpu", name: str = "") -> None:
        keep_position(network)
        with_lean_layers(network.vision_encoder)
        super().__init__(network, device, name)
        self._measure()

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "Sam":
        """A folder as transformers saves it. Raises CheckpointError."""
        values = read_config(folder, MODEL_TYPES)
        with building(folder):
            network = _build_of(values)
        fill(network, read_folder(folder), dtype, folder, f"{values['model_type']} as its config.json says")
        return cls(network, device, name)

    @classmethod
    def from_original(
        cls, state: Mapping[str, Tensor], kind: str, path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "Sam":
        """The tensors of an original file, of a kind that `sam_keys.recognise` gave. Raises CheckpointError."""
        values = config_of(kind, image_size(state))
        network = build(SamHQConfig(**values) if kind.startswith(HIGH_QUALITY) else SamConfig(**values))
        fill(network, renamed(state, kind), dtype, path, f"SAM {kind}")
        return cls(network, device, name)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """Image encoder with its neck, prompt encoder, mask decoder."""
        network = self.network
        return {
            "encoder": network.vision_encoder,
            "prompt_encoder": network.prompt_encoder,
            "decoder": network.mask_decoder,
        }

    def set_input_size(self, size: Size) -> None:
        """Resamples what the encoder has learned of places, if the size is another one; multiples of a patch."""
        check_size(size, self._patch, self.name)
        if size != self.input_size:
            self._fit_encoder(size)
            fit_heads(self.network, size)
            self._measure()

    def set_window_size(self, cells: int) -> None:
        """Windows of `cells` x `cells`, from 2 to the longer side of the input's cells (14 as trained)."""
        most = max(self._grid)
        if not 2 <= cells <= most:
            h, w = self.input_size
            raise ValueError(
                f"window_size for {self.name} must be from 2 to {most} cells of {self._patch} pixels"
                f" at an input of {h}x{w}, got {cells}"
            )
        fit_windows(self.network.vision_encoder, cells)
        self.network.config.vision_config.window_size = cells

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """As large as the input allows; the rest is padding."""
        return Frame.padded(size, self.input_size, crop_box)

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 ih iw"]:
        """Resized as uint8 by Pillow, normalised, then padded with zeros (`ResizeLongestSide`, `Sam.preprocess`)."""
        x0, y0, x1, y1 = frame.crop_box
        (h, w), (ih, iw) = frame.content_size, frame.input_size
        picture = PillowImage.fromarray(image.pixels[y0:y1, x0:x1])
        resized = torch.from_numpy(np.array(picture.resize((w, h), PillowImage.Resampling.BILINEAR))).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        return functional.pad((resized - mean) / std, (0, iw - w, 0, ih - h))

    def embed(self, pixels: Float[Tensor, "b 3 ih iw"]) -> dict[str, Tensor]:
        """`image_embedding`, and for HQ-SAM `early_embedding`: the tokens after the first block that sees all."""
        output = self.network.vision_encoder(pixels)
        if not self._is_hq:
            return {"image_embedding": output.last_hidden_state}
        early = output.intermediate_embeddings[0].permute(0, 3, 1, 2)
        return {"image_embedding": output.last_hidden_state, "early_embedding": early}

    def answers(
        self, features: Mapping[str, Tensor], image_rows: Int[Tensor, "n"], prompts: PromptTensors
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """Every prompt stands in the batch with its image, so that each can have its own mask prompt.

        HQ-SAM's last mask is that of its high-quality token, which has no predicted IoU.
        """
        return self._decode(features, image_rows, *self._embed_prompts(prompts))

    def answer_clicks(
        self, features: Mapping[str, Tensor], clicks: Clicks
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """As `PromptableModel.answer_clicks`."""
        encoder = self.network.prompt_encoder
        kinds = torch.cat([kind.weight for kind in encoder.point_embed])
        known = (clicks.labels >= 0)[..., None]
        side = encoder.input_image_size
        coords = as_in_square(clicks.coords, self.input_size)[:, None]
        place = encoder.shared_embedding(coords + 0.5, (side, side))[:, 0]
        sparse = torch.where(known, place, encoder.not_a_point_embed.weight) + kinds[clicks.labels.clamp(min=0)] * known
        return self._decode(features, None, sparse, dense_prompts(encoder, clicks))

    def padding(self, points: int, boxed: bool) -> int:
        """Beside points, unless there is a box (segment-anything, `PromptEncoder._embed_points`)."""
        return int(points > 0 and not boxed)

    def choose(
        self, logits: Float[Tensor, "n t lh lw"], predicted_iou: Float[Tensor, "n k"], multimask_output: bool
    ) -> tuple[Float[Tensor, "n c lh lw"], Float[Tensor, "n c"]]:
        """HQ-SAM adds its own mask to each, and gives its candidates by falling predicted IoU."""
        if not self._is_hq:
            return super().choose(logits, predicted_iou, multimask_output)
        high_quality = logits[:, -1:]
        logits, iou = super().choose(logits[:, :-1], predicted_iou, multimask_output)
        iou, order = iou.sort(dim=1, descending=True)
        return logits.take_along_dim(order[..., None, None], 1) + high_quality, iou

    def stage(self, features: Features, multimask_output: bool = True) -> Stage:
        """Without copies of the image in float32; HQ-SAM's token reads maps that whole masks alone have."""
        whole = self._whole_stage(features, multimask_output)
        if self._is_hq or not self._can_share:
            return whole
        decoder, encoder = self.network.mask_decoder, self.network.prompt_encoder
        image = features.tensors["image_embedding"][0] + encoder.no_mask_embed.weight[0][:, None, None]
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        position = image_position(self.network.shared_image_embedding, self._grid)[0]
        chosen = CANDIDATES if multimask_output else SINGLE
        return SharedStage(decoder, own, 0, image, position, self._sparse, whole, chosen=chosen)

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors."""
        write_folder(folder, self.network, {**self.config, "architectures": [type(self.network).__name__]})

    @property
    def decoder_features(self) -> tuple[str, ...]:
        """One map, and for HQ-SAM an early one."""
        return ("image_embedding", "early_embedding") if self._is_hq else ("image_embedding",)

    @classmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "Sam":
        """As `PromptableModel.without_weights`."""
        return cls(_build_of(config), "meta", name)

    @property
    def config(self) -> dict[str, Any]:
        """As transformers writes it."""
        values: dict[str, Any] = self.network.config.to_dict()
        return values

    @property
    def _patch(self) -> int:
        patch: int = self.network.config.prompt_encoder_config.patch_size
        return patch

    @property
    def _grid(self) -> Size:
        """Cells of the image embedding."""
        grid: Size = self.network.prompt_encoder.image_embedding_size
        return grid

    def _measure(self) -> None:
        h, w = self._grid
        self.input_size, self.mask_size = (h * self._patch, w * self._patch), (4 * h, 4 * w)

    def _fit_encoder(self, size: Size) -> None:
        fit_encoder(self.network.vision_encoder, size)

    @property
    def _is_hq(self) -> bool:
        return isinstance(self.network.mask_decoder, SamHQMaskDecoder)

    def _decode(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"] | None,
        sparse: Float[Tensor, "n l c"],
        dense: Float[Tensor, "n c h w"],
    ) -> tuple[Float[Tensor, "n t lh lw"], Float[Tensor, "n k"]]:
        """All masks; without `image_rows` the features of one image stand for every prompt."""
        decoder, every = self.network.mask_decoder, slice(None)
        whole = features["image_embedding"]
        image = whole[every if image_rows is None else image_rows] + dense
        position = image_position(self.network.shared_image_embedding, self._grid).to(self.dtype)
        own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if not self._is_hq:
            return answer_tokens(decoder, torch.cat(own), 0, image, position, sparse)
        used, back = (every, every) if image_rows is None else image_rows.unique(return_inverse=True)
        fine = fine_features(decoder, whole[used], features["early_embedding"][used])[back]
        return answer_hq(decoder, torch.cat([*own, decoder.hq_token.weight]), image, position, sparse, fine)

    def _sparse(self, prompts: PromptTensors) -> Float[Tensor, "n t c"]:
        return self._embed_prompts(prompts)[0]

    def _embed_prompts(self, prompts: PromptTensors) -> tuple[Float[Tensor, "n t c"], Float[Tensor, "n c h w"]]:
        """Sparse tokens, none without point and box, and dense ones; points alone get a padding point."""
        points, boxes = prompts.point_coords.shape[1] > 0, prompts.boxes
        if boxes is not None:
            boxes = as_in_square(boxes.unflatten(1, (2, 2)), self.input_size).flatten(1)
        sparse, dense = self.network.prompt_encoder(
            input_points=as_in_square(prompts.point_coords, self.input_size)[:, None] if points else None,
            input_labels=prompts.point_labels[:, None] if points else None,
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if prompts.masks is None else prompts.masks[:, None].to(self.dtype),
        )
        if not points and boxes is None:
            return dense.new_zeros(len(prompts), 0, dense.shape[1]), dense
        return sparse[:, 0].to(self.dtype), dense


def build(config: SamConfig | SamHQConfig) -> SamModel | SamHQModel:
    """The network without weights, on the meta device."""
    with torch.device("meta"):
        return SamHQModel(config) if isinstance(config, SamHQConfig) else SamModel(config)


def fill(network: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype, path: Path, what: str) -> None:
    """Gives a network of `build` its weights, which came from `path`. Raises CheckpointError."""
    load_strictly(network, in_dtype(with_shared_position(state), dtype), path, what)


def image_position(
    embedding: SamPositionalEmbedding | SamHQPositionalEmbedding, grid: Size
) -> Float[Tensor, "1 c gh gw"]:
    """The positional code of the centre of each of h x w cells."""
    device = embedding.positional_embedding.device
    down, across = ((torch.arange(cells, device=device) + 0.5) / cells for cells in grid)
    x, y = torch.meshgrid(across, down, indexing="xy")
    code: Tensor = embedding(torch.stack([x, y], dim=-1))
    return code.permute(2, 0, 1)[None]


def fine_features(
    decoder: SamHQMaskDecoder, image: Float[Tensor, "b c gh gw"], early: Float[Tensor, "b d gh gw"]
) -> Float[Tensor, "b e lh lw"]:
    """What HQ-SAM's token reads beside the decoder's own map: last and early tokens, both four times as fine."""
    last = decoder.encoder_conv2(decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(image))))
    first = decoder.compress_vit_norm(decoder.compress_vit_conv1(early))
    fine: Tensor = last + decoder.compress_vit_conv2(decoder.activation(first))
    return fine


def answer_hq(
    decoder: SamHQMaskDecoder,
    tokens: Float[Tensor, "o c"],
    image: Float[Tensor, "n c gh gw"],
    position: Float[Tensor, "1 c gh gw"],
    sparse: Float[Tensor, "n l c"],
    fine: Float[Tensor, "b e lh lw"],
) -> tuple[Float[Tensor, "n k lh lw"], Float[Tensor, "n t"]]:
    """HQ-SAM's decoder through the modules of transformers' SamHQMaskDecoder (sam-hq, `MaskDecoderHQ.predict_masks`).

    Not through its `forward`, which upscales the image as it was before the transformer, rows and columns exchanged
    (transformers 5.23), so that the authors' weights give other masks than in the authors' code.
    """
    read, cells = through_transformer(decoder, tokens, image, position, sparse)
    coarse = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(cells)))
    coarse = decoder.activation(decoder.upscale_conv2(coarse))
    finer = decoder.activation(decoder.mask_norm(decoder.mask_conv1(coarse)))
    finer = decoder.mask_conv2(finer) + fine
    hq_weights = decoder.hq_mask_mlp(read[:, len(tokens) - 1])
    hq_logits = torch.einsum("ne,nehw->nhw", hq_weights, finer)
    logits = torch.cat([masks_of(decoder, read[:, 1:], coarse), hq_logits[:, None]], dim=1)
    return logits, decoder.iou_prediction_head(read[:, 0])


def keep_position(network: Any) -> None:
    """Makes the positional embedding one float32 buffer: it is random by design and never trained."""
    shared = network.shared_image_embedding.positional_embedding.detach().float()
    for module in (network.shared_image_embedding, network.prompt_encoder.shared_embedding):
        delattr(module, POSITION)
        module.register_buffer(POSITION, shared)


def _build_of(values: Mapping[str, Any]) -> SamModel | SamHQModel:
    """By config.json. An input that is no square is one that `save` wrote: transformers builds squares alone."""
    kind: Any = SamHQConfig if values["model_type"] == "sam_hq" else SamConfig
    written = values.get("vision_config", {}).get("image_size")
    if not isinstance(written, list):
        return build(kind(**values))
    size = as_size(written)
    parts = ("vision_config", "prompt_encoder_config")
    network = build(kind(**{**values, **{part: {**values[part], "image_size": size[0]} for part in parts}}))
    fit_encoder(network.vision_encoder, size)
    fit_heads(network, size)
    return network
