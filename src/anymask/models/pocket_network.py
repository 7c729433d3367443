"""The network of the pocket model: EfficientNet-Lite, a feature pyramid, a SAM 2-style prompt encoder and mask decoder.

What differs from SAM 2 (Ravi et al. 2024, sections 4 and D): prompts are not only sparse tokens but are also drawn as
maps (disks, box, previous mask, text score) and added at strides 4, 8 and 16, as interactive segmentation does (RITM,
Sofiiuk et al. 2021); convolutions after each upsampling let the drawn prompt meet the image locally. That is what lets
4 million parameters learn from a few thousand photos. Text enters twice: as tokens, and as a score map per pixel.

Shapes: b images, n prompts, p points, l text tokens, d width; an input of ih x iw gives maps of qh x qw, eh x ew and
gh x gw at strides 4, 8 and 16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from anymask.models.efficientnet import EfficientNetLite
from anymask.models.image_sizes import as_size, as_written, check_size
from anymask.models.two_way import ChannelNorm, FeedForward, PromptEncoder, TwoWayTransformer
from anymask.types import Size

COARSEST = 32  # stride of the encoder's last level
DRAWN_CHANNELS = 7  # positive disks, negative disks, box filled, box edge, previous mask, "has a mask", text score
PLACE_CHANNELS = 4  # of them those of clicks and boxes


@dataclass(frozen=True)
class PocketConfig:
    """Literal sizes of the network."""

    encoder: str = "tf_efficientnet_lite0"
    image_size: int | tuple[int, int] = 384  # of a square its side, else (h, w)
    width: int = 128
    width_s8: int = 64
    width_s4: int = 32
    text_width: int = 128
    heads: int = 4
    mlp: int = 512
    layers: int = 2
    mask_tokens: int = 4  # the single mask, then three for an ambiguous prompt
    text_slots: int = 9  # tokens a text is padded to, in training and after: padding is attended to
    disk_radius: float = 5.0  # of a drawn click, in input pixels

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "PocketConfig":
        """From what JSON has made of it."""
        return cls(**{**values, "image_size": as_written(as_size(values["image_size"]))})

    @property
    def input_size(self) -> Size:
        """(h, w) of the input."""
        return as_size(self.image_size)

    @property
    def grid(self) -> Size:
        """(h, w) of the stride-16 map."""
        h, w = self.input_size
        return h // 16, w // 16


CONFIGS = {
    "pocket": PocketConfig(),
    "tiny": PocketConfig(
        encoder="tiny", image_size=64, width=32, width_s8=16, width_s4=8, text_width=16, heads=2, mlp=32
    ),
}


@dataclass(frozen=True)
class PocketFeatures:
    """What the encoder and the pyramid give for b images; computed once, read by every prompt."""

    s16: Float[Tensor, "b d gh gw"]
    s8: Float[Tensor, "b d8 eh ew"]
    s4: Float[Tensor, "b d4 qh qw"]
    text_s8: Float[Tensor, "b t eh ew"]


@dataclass(frozen=True)
class PocketPrompts:
    """n prompts as tensors, in input pixels; absent parts are padding: label -1, `has_*` False, text mask False."""

    points: Float[Tensor, "n p 2"]
    labels: Int[Tensor, "n p"]
    boxes: Float[Tensor, "n 4"]
    has_box: Bool[Tensor, "n"]
    masks: Float[Tensor, "n qh qw"]
    has_mask: Bool[Tensor, "n"]
    text_tokens: Float[Tensor, "n l t"]
    text_mask: Bool[Tensor, "n l"]

    @property
    def has_text(self) -> Bool[Tensor, "n"]:
        """Prompts with at least one text token."""
        return self.text_mask.any(dim=1)


@dataclass(frozen=True)
class PocketOutput:
    """Mask logits at stride 4 for each mask token, their predicted IoU (0 to 1), presence logit, text score map."""

    logits: Float[Tensor, "n m qh qw"]
    predicted_iou: Float[Tensor, "n m"]
    presence: Float[Tensor, "n"]
    score_map: Float[Tensor, "n eh ew"]


class PocketNetwork(nn.Module):
    """Encoder, pyramid, prompt encoder and decoder; the frozen text tower lives beside it (`pocket_text`)."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EfficientNetLite(config.encoder)
        self.pyramid = Pyramid(self.encoder.channels, config)
        self.text_score = TextScore(config)
        self.decoder = PocketDecoder(config)

    def set_image_size(self, size: int | Size) -> None:
        """Another input size (multiples of 32) for the same weights: all that depends on it are coordinates."""
        check_size(as_size(size), COARSEST, "pocket")
        config = replace(self.config, image_size=as_written(as_size(size)))
        self.config = self.decoder.config = self.decoder.drawing.config = config

    def encode(self, pixels: Float[Tensor, "b 3 ih iw"]) -> PocketFeatures:
        """Features of RGB images in -1 to 1."""
        features: PocketFeatures = self.pyramid(self.encoder(pixels))
        return features

    def decode(self, features: PocketFeatures, rows: Int[Tensor, "n"], prompts: PocketPrompts) -> PocketOutput:
        """All mask tokens of n prompts, prompt i on image `rows[i]`."""
        score_map = self.score(features, rows, prompts)
        logits, predicted_iou, presence = self.decoder(features, rows, prompts, score_map)
        return PocketOutput(logits, predicted_iou, presence, score_map)

    def answer_clicks(
        self,
        levels: Sequence[Tensor],
        coords: Float[Tensor, "n p 2"],
        labels: Int[Tensor, "n p"],
        masks: Float[Tensor, "n qh qw"],
        has_mask: Bool[Tensor, "n"],
    ) -> tuple[Float[Tensor, "n m qh qw"], Float[Tensor, "n m"]]:
        """Logits and predicted IoU on one image, without text; `levels` are its features at strides 16, 8 and 4.

        Clicks have labels 0 and 1, 2 and 3 (corners of a box) or -1 (empty).
        """
        n, slots, device = coords.shape[0], self.config.text_slots, coords.device
        corners = [(coords * (labels == corner)[..., None]).sum(1) for corner in (2, 3)]
        prompts = PocketPrompts(
            points=coords,
            labels=torch.where(labels < 2, labels, -1),
            boxes=torch.cat(corners, dim=1),
            has_box=(labels == 2).any(dim=1),
            masks=masks,
            has_mask=has_mask,
            text_tokens=coords.new_zeros(n, slots, self.config.text_width),
            text_mask=torch.zeros(n, slots, dtype=torch.bool, device=device),
        )
        return self.decoder.answer_clicks(levels, prompts, labels, coords.new_zeros(n, *levels[1].shape[2:]))

    def score(self, features: PocketFeatures, rows: Int[Tensor, "n"], prompts: PocketPrompts) -> Float[Tensor, "n h w"]:
        """The text score map of each prompt, zero for a prompt without text."""
        asking = prompts.has_text.nonzero()[:, 0]
        scores = features.text_s8.new_zeros(len(rows), *features.text_s8.shape[2:])
        if not len(asking):
            return scores
        pixels = features.text_s8[rows[asking]]
        found = self.text_score(pixels, prompts.text_tokens[asking], prompts.text_mask[asking])
        return scores.index_copy(0, asking, found.to(scores.dtype))


class Pyramid(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017) with global context, narrower towards the fine levels."""

    def __init__(self, channels: list[int], config: PocketConfig) -> None:
        super().__init__()
        d, d8, d4 = config.width, config.width_s8, config.width_s4
        self.lateral = nn.ModuleList([nn.Conv2d(c, w, 1) for c, w in zip(channels, (d4, d8, d, d), strict=True)])
        self.context = nn.Linear(channels[-1], d)
        self.mix32, self.mix16, self.mix8, self.mix4 = Mix(d), Mix(d), Mix(d8), Mix(d4)
        self.down8, self.down4 = nn.Conv2d(d, d8, 1), nn.Conv2d(d8, d4, 1)
        self.text = nn.Sequential(nn.Conv2d(d + d8, d, 1), nn.GELU(), Mix(d), nn.Conv2d(d, config.text_width, 1))

    def forward(self, levels: list[Tensor]) -> PocketFeatures:
        c4, c8, c16, c32 = levels
        s32 = self.mix32(self.lateral[3](c32) + self.context(c32.mean(dim=(2, 3)))[:, :, None, None])
        s16 = self.mix16(self.lateral[2](c16) + _double(s32))
        s8 = self.mix8(self.lateral[1](c8) + _double(self.down8(s16)))
        s4 = self.mix4(self.lateral[0](c4) + _double(self.down4(s8)))
        text_s8 = self.text(torch.cat([_double(s16), s8], dim=1))
        return PocketFeatures(s16, s8, s4, text_s8)


class TextScore(nn.Module):
    """How well each pixel fits a text: the dot product of a pixel embedding with a query made from the text tokens."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        t = config.text_width
        self.query = nn.Sequential(nn.LayerNorm(t), nn.Linear(t, 2 * t), nn.GELU(), nn.Linear(2 * t, t))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(
        self, pixels: Float[Tensor, "n t h w"], tokens: Float[Tensor, "n l t"], mask: Bool[Tensor, "n l"]
    ) -> Float[Tensor, "n h w"]:
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        query = self.query(pooled)
        scores: Tensor = torch.einsum("nthw,nt->nhw", pixels, query) / query.shape[-1] ** 0.5 + self.bias
        return scores


class PocketDecoder(nn.Module):
    """SAM 2's mask decoder at a small width, with drawn prompts and convolutions after each upsampling."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        d, d8, d4 = config.width, config.width_s8, config.width_s4
        self.config = config
        self.prompt_encoder = PromptEncoder(d)
        self.drawing = Drawing(config)
        self.text_token = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, d))
        self.output_tokens = nn.Embedding(2 + config.mask_tokens, d)  # presence, IoU, masks
        self.mix16 = Mix(d)
        self.transformer = TwoWayTransformer(d, config.heads, config.mlp, config.layers)
        self.up8, self.norm8, self.mix8 = nn.ConvTranspose2d(d, d8, 2, 2), ChannelNorm(d8), Mix(d8)
        self.up4, self.norm4, self.mix4 = nn.ConvTranspose2d(d8, d4, 2, 2), ChannelNorm(d4), Mix(d4)
        self.hypernetworks = nn.ModuleList([FeedForward(d, d, d4, 3) for _ in range(config.mask_tokens)])
        self.iou_head = FeedForward(2 * d, d, 1, 3)
        self.presence_head = FeedForward(d, d, 1, 3)

    def forward(
        self,
        features: PocketFeatures,
        rows: Int[Tensor, "n"],
        prompts: PocketPrompts,
        score_map: Float[Tensor, "n h w"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn4, drawn8, drawn16 = self.drawing(prompts, score_map)
        image = self.mix16(features.s16[rows] + self._mask_embedding(prompts) + drawn16)
        tokens, image = self.attend(self.tokens(prompts), image.flatten(2).transpose(1, 2))
        logits = self.masks(tokens, image, features.s8[rows] + drawn8, features.s4[rows] + drawn4)
        return logits, self.predicted_iou(tokens), self.presence_head(tokens[:, 0]).squeeze(1)

    def answer_clicks(
        self,
        levels: Sequence[Tensor],
        prompts: PocketPrompts,
        labels: Int[Tensor, "n p"],
        score_map: Float[Tensor, "n h w"],
    ) -> tuple[Float[Tensor, "n m qh qw"], Float[Tensor, "n m"]]:
        """On one image, with the tokens of `prompts.points` by `labels`, corners and empty clicks among them."""
        drawn4, drawn8, drawn16 = self.drawing(prompts, score_map)
        dense = torch.where(prompts.has_mask[:, None, None, None], self._embedded(prompts.masks), self._no_mask())
        # In this order: OpenVINO (2026.4) fails where the features of one image are added right after a convolution.
        s16, s8, s4 = levels
        image = self.mix16(s16 + dense + drawn16)
        sparse = self.prompt_encoder(self._shares(prompts.points), labels)
        tokens, image = self.attend(self._with_own(sparse, prompts), image.flatten(2).transpose(1, 2))
        return self.masks(tokens, image, s8 + drawn8, s4 + drawn4), self.predicted_iou(tokens)

    def attend(
        self, tokens: Float[Tensor, "n k d"], image: Float[Tensor, "n i d"]
    ) -> tuple[Float[Tensor, "n k d"], Float[Tensor, "n i d"]]:
        """Tokens and the cells of the stride-16 map after they have seen each other."""
        position = self.prompt_encoder.shared_embedding.grid(self.config.grid)
        attended: tuple[Tensor, Tensor] = self.transformer(tokens, image, position)
        return attended

    def predicted_iou(self, tokens: Float[Tensor, "n k d"]) -> Float[Tensor, "n m"]:
        """Of every mask token, from 0 to 1."""
        mask_tokens = self._mask_tokens(tokens)
        iou: Tensor = self.iou_head(torch.cat([mask_tokens, tokens[:, 1:2].expand_as(mask_tokens)], dim=2))
        return iou.squeeze(2).sigmoid()

    def masks(
        self,
        tokens: Float[Tensor, "n k d"],
        image: Float[Tensor, "n i d"],
        s8: Float[Tensor, "n d8 eh ew"],
        s4: Float[Tensor, "n d4 qh qw"],
    ) -> Float[Tensor, "n m qh qw"]:
        """Logits of every mask token; `s8` and `s4` are the pyramid with the drawn prompt."""
        return self.upscale(tokens, image.transpose(1, 2).unflatten(2, self.config.grid), s8, s4)

    def upscale(
        self,
        tokens: Float[Tensor, "n k d"],
        coarse: Float[Tensor, "n d gh gw"],
        s8: Float[Tensor, "n d8 eh ew"],
        s4: Float[Tensor, "n d4 qh qw"],
        count: int | None = None,
    ) -> Float[Tensor, "n m qh qw"]:
        """As `masks`, of the first `count` mask tokens or all, for the whole image or a window of it."""
        s8 = self.mix8(self.norm8(self.up8(coarse) + s8))
        s4 = self.mix4(self.norm4(self.up4(s8) + s4))
        mask_tokens = self._mask_tokens(tokens)
        hyper = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.hypernetworks[:count])], dim=1)
        logits: Tensor = (hyper @ s4.flatten(2)).unflatten(2, s4.shape[2:])
        return logits

    def _mask_tokens(self, tokens: Float[Tensor, "n k d"]) -> Float[Tensor, "n m d"]:
        return tokens[:, 2 : 2 + self.config.mask_tokens]

    def tokens(self, prompts: PocketPrompts) -> Float[Tensor, "n k d"]:
        """Output tokens, clicks, box corners (labels 2 and 3 of SAM's point embedding) and text tokens."""
        n = len(prompts.points)
        corner_labels = torch.where(prompts.has_box[:, None], torch.tensor([2, 3], device=prompts.labels.device), -1)
        points = torch.cat([prompts.points, prompts.boxes.view(n, 2, 2)], dim=1)
        points = self._shares(points)
        labels = torch.cat([prompts.labels, corner_labels], dim=1)
        # SAM adds one padding point to every prompt
        points, labels = functional.pad(points, (0, 0, 0, 1)), functional.pad(labels, (0, 1), value=-1)
        return self._with_own(self.prompt_encoder(points, labels), prompts)

    def _shares(self, points: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p 2"]:
        """Of the input's sides."""
        h, w = self.config.input_size
        return torch.stack([points[..., 0] / w, points[..., 1] / h], dim=-1)

    def _with_own(self, sparse: Float[Tensor, "n p d"], prompts: PocketPrompts) -> Float[Tensor, "n k d"]:
        """The tokens of clicks and corners between those of the decoder and those of the text."""
        text = self.text_token(prompts.text_tokens)
        text = torch.where(prompts.text_mask[..., None], text, self.prompt_encoder.not_a_point_embed.weight)
        return torch.cat([self.output_tokens.weight.expand(sparse.shape[0], -1, -1), sparse, text], dim=1)

    def _mask_embedding(self, prompts: PocketPrompts) -> Tensor:
        """For each prompt, or one for all."""
        if not prompts.has_mask.any():
            return self._no_mask()
        return torch.where(prompts.has_mask[:, None, None, None], self._embedded(prompts.masks), self._no_mask())

    def _no_mask(self) -> Float[Tensor, "1 d 1 1"]:
        return self.prompt_encoder.no_mask_embed.weight[:, :, None, None]

    def _embedded(self, masks: Float[Tensor, "n qh qw"]) -> Float[Tensor, "n d gh gw"]:
        embedded: Tensor = self.prompt_encoder.mask_embed(masks[:, None].clamp(-10, 10))
        return embedded


class Drawing(nn.Module):
    """Prompts as maps of the image, at strides 4, 8 and 16."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        d, d8, d4 = config.width, config.width_s8, config.width_s4
        self.config = config
        self.conv4 = nn.Conv2d(DRAWN_CHANNELS, d4, 3, padding=1)
        self.conv8 = nn.Sequential(nn.ReLU(), nn.Conv2d(d4, d8, 2, stride=2))
        self.conv16 = nn.Sequential(nn.ReLU(), nn.Conv2d(d8, d, 2, stride=2))

    def forward(self, prompts: PocketPrompts, score_map: Float[Tensor, "n h w"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.spread(self.draw(prompts, score_map))

    def spread(self, maps: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Drawn maps as features at strides 4, 8 and 16."""
        return self.coarsen(self.conv4(maps))

    def coarsen(self, drawn4: Float[Tensor, "n d4 qh qw"]) -> tuple[Tensor, Tensor, Tensor]:
        """The same from those at stride 4 on."""
        drawn8 = self.conv8(drawn4)
        return drawn4, drawn8, self.conv16(drawn8)

    def draw(self, prompts: PocketPrompts, score_map: Float[Tensor, "n h w"]) -> Float[Tensor, "n c qh qw"]:
        """The maps themselves, `DRAWN_CHANNELS` of them, each about -1 to 1."""
        h, w = (side // 4 for side in self.config.input_size)
        down, across = ((torch.arange(side, device=score_map.device) + 0.5) * 4 for side in (h, w))
        mask = torch.where(prompts.has_mask[:, None, None], torch.tanh(prompts.masks / 4), 0.0)
        has_mask = prompts.has_mask[:, None, None].to(mask.dtype).expand_as(mask)
        scores = functional.interpolate(score_map[:, None], size=(h, w), mode="bilinear")[:, 0]
        own = torch.stack([mask, has_mask, torch.tanh(scores / 4)], dim=1)
        return torch.cat([self.draw_places(prompts, down, across), own], dim=1)

    def draw_places(
        self, prompts: PocketPrompts, down: Float[Tensor, "qh"], across: Float[Tensor, "qw"]
    ) -> Float[Tensor, "n c qh qw"]:
        """The first `PLACE_CHANNELS` maps, at these y and x; they fade within 32 pixels of a click, 16 of a box."""
        positive, negative = (self._disks(prompts, down, across, label) for label in (1, 0))
        inside = self._box_distance(prompts.boxes, down, across)
        has_box = prompts.has_box[:, None, None]
        filled = torch.where(has_box, torch.sigmoid(inside), 0.0)
        edge = torch.where(has_box, torch.exp(-((inside / 4) ** 2)), 0.0)
        return torch.stack([positive, negative, filled, edge], dim=1)

    def _disks(
        self, prompts: PocketPrompts, down: Float[Tensor, "qh"], across: Float[Tensor, "qw"], label: int
    ) -> Float[Tensor, "n qh qw"]:
        """1 on the clicks of `label`, falling to 0 at about twice the radius."""
        x, y = prompts.points.unbind(-1)
        squared = (y[..., None] - down).square()[..., :, None] + (x[..., None] - across).square()[..., None, :]
        far = (prompts.labels != label)[..., None, None] * 1e6
        return torch.exp(-(squared + far).amin(dim=1) / (2 * self.config.disk_radius**2))

    @staticmethod
    def _box_distance(
        boxes: Float[Tensor, "n 4"], down: Float[Tensor, "qh"], across: Float[Tensor, "qw"]
    ) -> Float[Tensor, "n qh qw"]:
        """Signed distance to the nearest box side in input pixels, positive inside."""
        to_sides = torch.minimum(across - boxes[:, 0:1], boxes[:, 2:3] - across)
        to_ends = torch.minimum(down - boxes[:, 1:2], boxes[:, 3:4] - down)
        return torch.minimum(to_ends[:, :, None], to_sides[:, None, :])


class Mix(nn.Module):
    """A residual 3 x 3 convolution: a dense one, which a CPU runs and learns faster than a depthwise pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mixed: Tensor = x + self.conv(functional.relu(x))
        return mixed


def normalise(pixels: Shaped[Tensor, "b 3 ih iw"]) -> Float[Tensor, "b 3 ih iw"]:
    """RGB 0 to 255 to about -1 .. 1, as EfficientNet-Lite was trained."""
    scaled: Tensor = (pixels.float() - 127.0) / 128.0
    return scaled.contiguous(memory_format=torch.channels_last)


def _double(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
    return functional.interpolate(x, scale_factor=2, mode="bilinear")
