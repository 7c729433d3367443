"""MobileSAM: SAM's heads over a TinyViT of timm, fast on a CPU; and Light HQ-SAM, which is HQ-SAM on the same encoder.

Papers: Zhang et al., Faster Segment Anything (2023); Ke et al., Segment Anything in High Quality (2023). transformers
has no class for it; the network here is its SamModel (or SamHQModel) with another vision encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.models.tiny_vit import Attention, TinyVit
from torch import Tensor, nn
from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel
from transformers.models.sam.modeling_sam import SamVisionNeck
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionEncoderOutput, SamHQVisionNeck

from anymask.models import sam
from anymask.models.capabilities import MOBILE
from anymask.models.checkpoints import building, read_config, read_folder, write_folder
from anymask.models.image_sizes import as_size, as_written
from anymask.models.mobile_keys import HQ_KIND, MODEL_TYPES, renamed
from anymask.models.promptable import PromptableModel
from anymask.models.sam import Sam, fill
from anymask.models.sam_keys import DECODER_NORM_EPS
from anymask.models.sam_sizes import fit_heads
from anymask.types import Size

STRIDE = 16  # of the encoder: the last stage does not halve again
EARLY_STAGE = 2  # Light HQ-SAM reads what enters the blocks of this stage (sam-hq, `TinyViT.forward_features`)


@dataclass(frozen=True)
class MobileSamConfig:
    """The sizes of `mobile_sam.pt`; `high_quality` is Light HQ-SAM."""

    image_size: int | tuple[int, int] = 1024  # of a square its side, else (h, w)
    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    hidden_size: int = 256
    decoder_mlp_dim: int = 2048
    iou_head_hidden_dim: int = 256
    high_quality: bool = False


class TinyVitEncoder(nn.Module):
    """timm's TinyViT without classifier, and SAM's neck."""

    def __init__(self, config: MobileSamConfig, neck: SamVisionNeck | SamHQVisionNeck) -> None:
        super().__init__()
        self.config = config
        vit: Any = TinyVit(
            num_classes=0,
            embed_dims=config.embed_dims,
            depths=config.depths,
            num_heads=config.num_heads,
            window_sizes=config.window_sizes,
            drop_path_rate=0.0,
        )
        vit.head = nn.Identity()
        vit.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.vit = vit
        self.neck = neck

    def forward(self, pixel_values: Float[Tensor, "b 3 ih iw"]) -> SamHQVisionEncoderOutput:
        """The image embedding, and one map of tokens (channels last) from the middle, as HQ-SAM's encoder gives both.

        timm keeps the attention biases of the last call in eval mode, also when training has changed them since.
        """
        for module in self.vit.modules():
            if isinstance(module, Attention):
                module.attention_bias_cache = {}
        tokens = self.vit.stages[:EARLY_STAGE](self.vit.patch_embed(pixel_values))
        early = self.vit.stages[EARLY_STAGE].downsample(tokens).permute(0, 2, 3, 1)
        tokens = self.vit.stages[EARLY_STAGE].blocks(early).permute(0, 3, 1, 2)
        tokens = self.vit.stages[EARLY_STAGE + 1](tokens).permute(0, 2, 3, 1)
        return SamHQVisionEncoderOutput(last_hidden_state=self.neck(tokens), intermediate_embeddings=[early])


class MobileSam(Sam):
    """MobileSAM and Light HQ-SAM."""

    family: ClassVar[str] = "mobile"
    capabilities = MOBILE

    @classmethod
    def from_folder(cls, folder: Path, device: str, dtype: torch.dtype, name: str) -> "MobileSam":
        """A folder of `save`. Raises CheckpointError."""
        values = read_config(folder, MODEL_TYPES)
        with building(folder):
            network = build(_config(values))
        fill(network, read_folder(folder), dtype, folder, f"{values['model_type']} as its config.json says")
        return cls(network, device, name)

    @classmethod
    def from_original(
        cls, state: Mapping[str, Tensor], kind: str, path: Path, device: str, dtype: torch.dtype, name: str
    ) -> "MobileSam":
        """The tensors of an original file, of a kind that `mobile_keys.recognise` gave. Raises CheckpointError."""
        network = build(MobileSamConfig(high_quality=kind == HQ_KIND))
        fill(network, renamed(state, kind), dtype, path, f"MobileSAM {kind}")
        return cls(network, device, name)

    def set_window_size(self, cells: int) -> None:
        """Raises ValueError: what TinyViT has learned of places within a window fits that window alone."""
        PromptableModel.set_window_size(self, cells)

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors, laid out as transformers would."""
        write_folder(folder, self.network, self.config)

    @classmethod
    def without_weights(cls, config: dict[str, Any], name: str) -> "MobileSam":
        """As `PromptableModel.without_weights`."""
        return cls(build(_config(config)), "meta", name)

    @property
    def config(self) -> dict[str, Any]:
        """The sizes, under the name of the family."""
        return {"model_type": MODEL_TYPES[0], **asdict(self.network.vision_encoder.config)}

    def _fit_encoder(self, size: Size) -> None:
        """TinyViT has no places to resample: it knows them from its convolutions, and within windows."""
        encoder = self.network.vision_encoder
        encoder.config = replace(encoder.config, image_size=as_written(size))


def _config(values: Mapping[str, Any]) -> MobileSamConfig:
    given = {field.name: values[field.name] for field in fields(MobileSamConfig) if field.name in values}
    sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    return MobileSamConfig(**sizes)


def build(config: MobileSamConfig) -> SamModel | SamHQModel:
    """The network without weights: neck and heads on the meta device, the TinyViT on the CPU for its lasting tables."""
    network: Any = sam.build(_transformers_config(config))
    fit_heads(network, as_size(config.image_size))
    with torch.random.fork_rng(devices=[]):  # to build is no reason for other random numbers after it
        network.vision_encoder = TinyVitEncoder(config, network.vision_encoder.neck)
    built: SamModel | SamHQModel = network
    return built


def _transformers_config(config: MobileSamConfig) -> SamConfig | SamHQConfig:
    """Of neck and heads; the vision encoder has no layers, for another takes its place."""
    side = {"image_size": as_size(config.image_size)[0], "patch_size": STRIDE}
    values: dict[str, Any] = {
        "vision_config": {
            **side,
            "hidden_size": config.embed_dims[-1],
            "num_hidden_layers": 0,
            "output_channels": config.hidden_size,
            "num_pos_feats": config.hidden_size // 2,
        },
        "prompt_encoder_config": {**side, "hidden_size": config.hidden_size},
        "mask_decoder_config": {
            "hidden_size": config.hidden_size,
            "mlp_dim": config.decoder_mlp_dim,
            "iou_head_hidden_dim": config.iou_head_hidden_dim,
            "layer_norm_eps": DECODER_NORM_EPS,
        },
    }
    if not config.high_quality:
        return SamConfig(**values)
    values["mask_decoder_config"]["vit_dim"] = config.embed_dims[EARLY_STAGE]
    return SamHQConfig(**values)
