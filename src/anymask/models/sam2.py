"""SAM 2, SAM 2.1 and EdgeTAM on images, through transformers' Sam2Model and EdgeTamModel.

The result for the same numbers is that of the sam2 package (`SAM2ImagePredictor`): a box is two clicks on its corners,
before the other clicks; a mask alone comes without any click, also without the empty one that transformers adds.
Paper: Ravi et al. 2024, SAM 2: Segment Anything in Images and Videos.
"""

from collections.abc import Callable, Mapping, Sequence
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
from anymask.models.promptable import PromptableModel
from anymask.models.protocol import CropBox
from anymask.types import Features, Frame, Image, Size

CONFIG_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
LEVELS = ("high_res_0", "high_res_1", "image_embedding")  # stride 4, 8 and 16
BOX_LABELS = (2, 3)  # of the two corners, as clicks (sam2, `SAM2ImagePredictor._predict`)
MASK_LIMIT = 32.0  # the sam2 package hands its low-resolution logits back clamped to this
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Sam2(PromptableModel):
    """Images only: the memory of the video model is left aside."""

    family: ClassVar[str] = "sam2"
    capabilities = SAM2
    network: Any  # Sam2Model or EdgeTamModel

    def __init__(self, network: nn.Module, device: str = "cpu", name: str = "") -> None:
        super().__init__(network, device, name)
        self.input_side = self.network.prompt_encoder.input_image_size
        self.mask_side = self.network.prompt_encoder.mask_input_size[0]

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "Sam2":
        """From a folder of transformers, of the image or the video model; raises CheckpointError."""
        config = read_config(folder, sam2_keys.MODEL_TYPES)
        with building(folder):
            network = _build(config["model_type"], {part: config[part] for part in CONFIG_PARTS if part in config})
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

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """Stretched to the square input."""
        return Frame.stretched(size, (self.input_side, self.input_side), crop_box)

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 s s"]:
        """Averaged or bilinear in float, then ImageNet's mean and deviation (sam2, `SAM2Transforms`)."""
        x0, y0, x1, y1 = frame.crop_box
        pixels = torch.from_numpy(image.pixels[y0:y1, x0:x1].transpose(2, 0, 1).copy()).float() / 255
        square = functional.interpolate(pixels[None], frame.input_size, mode="bilinear", antialias=True)[0]
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (square - mean) / std

    def embed(self, pixels: Float[Tensor, "b 3 s s"]) -> dict[str, Tensor]:
        """The three levels as the decoder takes them, the "no memory" token added to the last."""
        decoder = self.network.mask_decoder
        fine, middle, coarse = self.network.vision_encoder(pixels).fpn_hidden_states
        token = self.network.no_memory_embedding.reshape(1, -1, 1, 1)
        return dict(zip(LEVELS, (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse + token), strict=True))

    def respond(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        prompts: PromptTensors,
        multimask_output: bool,
    ) -> tuple[Float[Tensor, "n c m m"], Float[Tensor, "n c"]]:
        """Unclamped logits, and IoU from 0 to 1; a single mask that is unstable gives way in eval mode."""
        sparse, dense = self._embed_prompts(prompts)
        fine, middle = (features[level][_fewest(image_rows)] for level in LEVELS[:2])
        logits, iou, _, _ = self.network.mask_decoder(
            image_embeddings=features[LEVELS[2]][image_rows],
            image_positional_embeddings=self.network.get_image_wide_positional_embeddings().to(self.dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            high_resolution_features=[fine, middle],
        )
        return logits[:, 0], iou[:, 0]

    def stage(self, features: Features) -> Stage:
        """Without copies of the image in float32."""
        whole = self._whole_stage(features)
        if self.dtype != torch.float32:
            return whole
        levels = [features.tensors[level] for level in LEVELS]
        position = self.network.get_image_wide_positional_embeddings()
        return shared_stage(
            self.network, levels, position, lambda prompts: self._embed_prompts(prompts)[0][:, 0], whole
        )

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors of the image model, also where the weights came with a memory."""
        self.network.config.architectures = [type(self.network).__name__]
        write_folder(folder, self.network, self.network.config.to_dict())

    def _embed_prompts(self, prompts: PromptTensors) -> tuple[Float[Tensor, "n 1 k d"], Float[Tensor, "n d h w"]]:
        points, labels = prompts.point_coords, prompts.point_labels
        if prompts.boxes is not None:
            corners = labels.new_tensor(BOX_LABELS).expand(len(prompts), 2)
            points = torch.cat([prompts.boxes.reshape(-1, 2, 2), points], dim=1)
            labels = torch.cat([corners, labels], dim=1)
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


def _fewest(image_rows: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
    """One row where all are the same: the decoder adds its features to every prompt, without a copy for each."""
    return image_rows[:1] if bool((image_rows == image_rows[0]).all()) else image_rows


def _build(kind: str, config: dict[str, Any]) -> Sam2Model | EdgeTamModel:
    """The network without weights."""
    edge = kind.startswith(sam2_keys.EDGETAM)
    with torch.device("meta"):
        return EdgeTamModel(EdgeTamConfig(**config)) if edge else Sam2Model(Sam2Config(**config))
