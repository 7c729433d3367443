"""Many clicks on one image for pocket: what a click changes of the image, and no more, is computed for each.

Pocket draws a click into the image (`pocket_network.Drawing`), so that cells cannot be shared as in SAM. But a drawn
disk fades within 32 pixels, and the convolution before the transformer reaches one cell further: outside of 7 x 7 cells
of stride 16 the image that enters the transformer is the same for all clicks. Masks are made for survivors alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.decode import CANDIDATES, PromptTensors, Scored, WholeStage
from anymask.models.pocket_network import DRAWN_CHANNELS, PocketFeatures, PocketNetwork, PocketPrompts

STRIDE = 16
REACH = 2  # cells that a disk reaches beyond the cell of its click
DRAWN = 2 * REACH + 1  # side of what a click draws, in cells
SCORED_AT_ONCE, MASKS_AT_ONCE = 16, 4


class ClickStage:
    """The decoder made ready for lone clicks on one image; other prompts go the `whole` way."""

    chunk = SCORED_AT_ONCE

    def __init__(
        self,
        network: PocketNetwork,
        features: PocketFeatures,
        as_prompts: Callable[[PromptTensors], PocketPrompts],
        whole: WholeStage,
        chosen: slice = CANDIDATES,
    ) -> None:
        self.decoder, self.as_prompts, self.whole, self.chosen = network.decoder, as_prompts, whole, chosen
        self.radius = network.config.disk_radius
        drawing = self.decoder.drawing
        blank4, blank8, blank16 = drawing.spread(features.s4.new_zeros(1, DRAWN_CHANNELS, 4, 4))
        self.blank = blank4[..., :1, :1], blank8[..., :1, :1], blank16  # without a click it is the same everywhere
        unmixed = features.s16 + blank16 + self.decoder.prompt_encoder.no_mask_embed.weight[0][:, None, None]
        self.size = (unmixed.shape[2], unmixed.shape[3])
        self.image = _channels_last(self.decoder.mix16(unmixed))
        self.unmixed = _channels_last(functional.pad(unmixed, (REACH + 2,) * 4))  # zeros: the convolution's own padding
        self.s8, self.s4 = _channels_last(features.s8 + self.blank[1]), _channels_last(features.s4 + self.blank[0])

    def score(self, prompts: PromptTensors) -> Scored:
        """As `Stage.score`."""
        alone = prompts.boxes is None and prompts.masks is None and prompts.text is None
        if not alone or prompts.point_coords.shape[1] != 1:
            return self.whole.score(prompts)
        points = prompts.point_coords[:, 0]
        limit = torch.tensor(self.size, device=points.device) - 1
        cells = torch.minimum((points.flip(1) / STRIDE).long().clamp(min=0), limit)
        drawn4, drawn8, drawn16 = self._drawn(points, prompts.point_labels[:, 0], cells - REACH)
        image = self._mixed(cells, drawn16)
        tokens, image = self.decoder.attend(self.decoder.tokens(self.as_prompts(prompts)), image)
        return _Clicked(self, tokens, image, cells, drawn8, drawn4)

    def _drawn(
        self, points: Float[Tensor, "n 2"], labels: Int[Tensor, "n"], corners: Int[Tensor, "n 2"]
    ) -> list[Float[Tensor, "n h w d"]]:
        """What clicks add at strides 4, 8 and 16 to `DRAWN` cells from these corners (y x) on."""
        n, side = len(points), DRAWN * 4
        centres = (torch.arange(side, device=points.device) + 0.5) * 4
        y, x = ((points[:, i, None] - corners[:, 1 - i, None] * STRIDE - centres).square() for i in (1, 0))
        disks = torch.exp(-(y[:, :, None] + x[:, None, :]) / (2 * self.radius**2))
        inside = _Windows.of(corners * 4, side, (self.size[0] * 4, self.size[1] * 4)).valid
        maps = disks.new_zeros(n, DRAWN_CHANNELS, side, side)
        maps[torch.arange(n, device=points.device), 1 - labels] = disks * inside
        pairs = zip(self.decoder.drawing.spread(maps), self.blank, strict=True)
        return [_channels_last(drawn - blank) for drawn, blank in pairs]

    def _mixed(self, cells: Int[Tensor, "n 2"], drawn: Float[Tensor, "n h w d"]) -> Float[Tensor, "n i d"]:
        """The image that enters the transformer, made anew around each click."""
        n, side = len(cells), DRAWN + 4
        around = _Windows.of(cells, side, (self.size[0] + 2 * REACH + 4, self.size[1] + 2 * REACH + 4))
        windows = self.unmixed[0, around.y, around.x].view(n, side, side, -1)
        inside = _Windows.of(cells - REACH, DRAWN, self.size)
        windows[:, 2:-2, 2:-2] += drawn * inside.valid[..., None]
        windows = windows.permute(0, 3, 1, 2)
        convolution = self.decoder.mix16.conv
        mixed = functional.conv2d(functional.relu(windows), convolution.weight, convolution.bias)
        mixed += windows[:, :, 1:-1, 1:-1]
        image = self.image.expand(n, -1, -1, -1).clone()
        _Windows.of(cells - REACH - 1, DRAWN + 2, self.size).put(image, _channels_last(mixed))
        return image.flatten(1, 2)


class _Clicked:
    """Scores of `ClickStage`, and what its masks are made of."""

    def __init__(
        self, stage: ClickStage, tokens: Tensor, image: Tensor, cells: Tensor, drawn8: Tensor, drawn4: Tensor
    ) -> None:
        self.stage, self.tokens, self.image, self.cells = stage, tokens, image, cells
        self.drawn8, self.drawn4 = drawn8, drawn4
        self.predicted_iou = stage.decoder.predicted_iou(tokens)[:, stage.chosen]

    def logits(self, keep: Bool[Tensor, "n c"]) -> Float[Tensor, "k lh lw"]:
        """As `Scored.logits`."""
        rows = keep.any(1).nonzero()[:, 0]
        parts = [self._masks(some)[:, self.stage.chosen][keep[some]] for some in rows.split(MASKS_AT_ONCE)]
        return torch.cat(parts) if len(rows) else self.tokens.new_zeros(0, *self.stage.s4.shape[1:3])

    def _masks(self, rows: Int[Tensor, "k"]) -> Float[Tensor, "k m qh qw"]:
        stage, finer = self.stage, []
        for whole, drawn, ratio in ((stage.s8, self.drawn8, 2), (stage.s4, self.drawn4, 4)):
            level = whole.expand(len(rows), -1, -1, -1).clone()
            size = (stage.size[0] * ratio, stage.size[1] * ratio)
            _Windows.of((self.cells[rows] - REACH) * ratio, DRAWN * ratio, size).add(level, drawn[rows])
            finer.append(level.permute(0, 3, 1, 2))
        return stage.decoder.masks(self.tokens[rows], self.image[rows], finer[0], finer[1])


@dataclass(frozen=True)
class _Windows:
    """A square of cells for each of n maps of one size: of those within the map the map, y and x."""

    valid: Bool[Tensor, "n s s"]
    row: Int[Tensor, "k"]
    y: Int[Tensor, "k"]
    x: Int[Tensor, "k"]

    @classmethod
    def of(cls, corners: Int[Tensor, "n 2"], side: int, size: tuple[int, int]) -> "_Windows":
        """Squares with these corners (y x), which may lie outside of the map."""
        steps = torch.arange(side, device=corners.device)
        y = (corners[:, 0, None] + steps)[:, :, None].expand(-1, -1, side)
        x = (corners[:, 1, None] + steps)[:, None, :].expand(-1, side, -1)
        valid = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
        return cls(valid, valid.nonzero()[:, 0], y[valid], x[valid])

    def put(self, maps: Float[Tensor, "n h w d"], values: Float[Tensor, "n s s d"]) -> None:
        """Writes into the maps."""
        maps[self.row, self.y, self.x] = values[self.valid]

    def add(self, maps: Float[Tensor, "n h w d"], values: Float[Tensor, "n s s d"]) -> None:
        """Adds to the maps."""
        maps[self.row, self.y, self.x] += values[self.valid]


def _channels_last(x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n h w d"]:
    return x.permute(0, 2, 3, 1).contiguous()
