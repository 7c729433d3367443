"""The two halves of a model as modules of tensors alone, and as graphs: what runtimes and exported folders are made of.

The encoder takes `pixel_values` and gives the family's features by name. The decoder takes those of one image and any
number of prompts, each with any number of clicks (`Clicks`), and gives what every mask token says of each prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anymask.models.promptable import Clicks, PromptableModel

CLICKS = ("point_coords", "point_labels", "mask_input", "has_mask_input")  # segment-anything's names, `SamOnnxModel`
ANSWERS = ("logits", "predicted_iou")
EXAMPLE_PROMPTS, EXAMPLE_POINTS = 3, 5  # neither 0 nor 1, which would become constants of the graph


@dataclass(frozen=True)
class Half:
    """A module with what a graph of it is called with; `dynamic` are the axes of its inputs that are not fixed."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]

    def exported(self) -> torch.export.ExportedProgram:
        """As PyTorch's own graph."""
        axes = {name: torch.export.Dim(name) for name in {axis for one in self.dynamic.values() for axis in one.values()}}
        shapes = tuple({i: axes[axis] for i, axis in self.dynamic.get(name, {}).items()} for name in self.inputs)
        with torch.no_grad():
            return torch.export.export(self.module, tuple(self.inputs.values()), dynamic_shapes={"inputs": shapes})


def encoder_of(model: PromptableModel) -> Half:
    """Of one image; the features are those that the decoder takes."""
    pixels = torch.zeros(1, 3, *input_size(model), dtype=model.dtype, device=model.device)
    names = model.decoder_features
    return Half(_Encoder(model, names), {"pixel_values": pixels}, names, {})


def decoder_of(model: PromptableModel, features: Mapping[str, Tensor]) -> Half:
    """Of prompts on one image, whose `features` serve as an example."""
    n, p = EXAMPLE_PROMPTS, EXAMPLE_POINTS
    labels = torch.tensor([1, 0, 2, 3, -1]).expand(n, p).contiguous()
    masks = torch.zeros(n, *mask_size(model))
    clicks = (torch.ones(n, p, 2), labels, masks, torch.zeros(n))
    dynamic: dict[str, dict[int, str]] = {name: {0: "prompts"} for name in CLICKS}
    dynamic["point_coords"] = dynamic["point_labels"] = {0: "prompts", 1: "points"}
    inputs = {name: features[name] for name in model.decoder_features} | dict(zip(CLICKS, clicks, strict=True))
    return Half(_Decoder(model, model.decoder_features), inputs, ANSWERS, dynamic)


class _Encoder(nn.Module):
    """`embed`."""

    def __init__(self, model: PromptableModel, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.model, self.names = model.network, model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features = self.model.embed(inputs[0])
        return tuple(features[name] for name in self.names)


class _Decoder(nn.Module):
    """`answer_clicks`."""

    def __init__(self, model: PromptableModel, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.model, self.names = model.network, model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features = dict(zip(self.names, inputs[: len(self.names)], strict=True))
        return self.model.answer_clicks(features, Clicks(*inputs[len(self.names) :]))
