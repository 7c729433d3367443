"""A family of one small network for tests of training: it learns disks in a second; and pictures of disks."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from safetensors.torch import save_file
from torch import nn

from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Capabilities
from anymask.ops import resize
from anymask.types import Frame

SIDE, CELLS = 32, 16


class StandinNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU())
        self.prompt_encoder = nn.Conv2d(3, 8, 1)
        self.decoder = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))


class Standin(PromptableModel):
    """Draws prompts as maps: the box, the clicks, the mask. Three candidates, or one mask."""

    family = "standin"
    capabilities = Capabilities()
    input_size, mask_size = (SIDE, SIDE), (CELLS, CELLS)

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(StandinNetwork())
        self.embedded, self.most_images = 0, 99

    @property
    def parts(self):
        return dict(self.network.named_children())

    def frame(self, size, crop_box=None):
        return Frame.stretched(size, (SIDE, SIDE), crop_box)

    def preprocess(self, image, frame):
        x0, y0, x1, y1 = frame.crop_box
        return resize.stretch(image.pixels[y0:y1, x0:x1], (SIDE, SIDE)).float() / 255

    def embed(self, pixels):
        self.embedded += len(pixels)
        return {"cells": self.network.encoder(pixels), "unused": pixels[:, :1, :1, :1]}

    def answers(self, features, image_rows, prompts):
        if len(features["cells"]) > self.most_images:
            raise torch.OutOfMemoryError("a stand-in for a GPU")
        drawn = torch.stack([self._box(prompts), self._clicks(prompts), self._mask(prompts)], dim=1)
        out = self.network.decoder(features["cells"][image_rows] + self.network.prompt_encoder(drawn))
        return out[:, :4], out[:, 4:].mean(dim=(2, 3)).sigmoid()

    decoder_features = ("cells",)
    config = None

    def answer_clicks(self, features, clicks):
        raise NotImplementedError

    def padding(self, points, boxed):
        raise NotImplementedError

    @classmethod
    def without_weights(cls, config, name):
        raise NotImplementedError

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / "model.safetensors")

    def _box(self, prompts):
        if prompts.boxes is None:
            return torch.zeros(len(prompts), CELLS, CELLS)
        at = (torch.arange(CELLS) + 0.5) * SIDE / CELLS
        x0, y0, x1, y1 = prompts.boxes.T[..., None]
        return (((at > y0) & (at < y1))[:, :, None] & ((at > x0) & (at < x1))[:, None]).float()

    def _clicks(self, prompts):
        at = (torch.arange(CELLS) + 0.5) * SIDE / CELLS
        drawn = torch.zeros(len(prompts), CELLS, CELLS)
        for points, label in zip(prompts.point_coords.unbind(1), prompts.point_labels.unbind(1), strict=True):
            x, y = points.T
            near = torch.exp(-((at - y[:, None]) ** 2)[:, :, None] / 32 - ((at - x[:, None]) ** 2)[:, None] / 32)
            drawn = drawn + near * (2 * label - 1)[:, None, None]
        return drawn

    def _mask(self, prompts):
        return torch.zeros(len(prompts), CELLS, CELLS) if prompts.masks is None else torch.tanh(prompts.masks)


def write_disks(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> tuple[Path, Path]:
    """Bright disks on dark noise, one a picture, and their masks."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    rng = np.random.default_rng(0)
    (h, w), (y, x) = size, np.mgrid[: size[0], : size[1]]
    for i in range(count):
        r = rng.uniform(7, 14)
        disk = (x - rng.uniform(r, w - r)) ** 2 + (y - rng.uniform(r, h - r)) ** 2 < r * r
        pixels = rng.integers(0, 80, (h, w, 3), dtype=np.uint8)
        pixels[disk] = rng.integers(150, 250, 3)
        PillowImage.fromarray(pixels).save(images / f"{i:02}.png")
        PillowImage.fromarray(disk.astype(np.uint8) * 255).save(masks / f"{i:02}.png")
    return images, masks
