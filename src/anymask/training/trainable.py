"""What a model must offer to be trained by prompts: the protocol, and the steps of which its answers are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from anymask.models.promptable import PromptTensors
from anymask.models.protocol import CropBox, Model
from anymask.types import Frame, Image, Size

LEARNABLE = ("decoder", "prompt_encoder", "encoder")


@runtime_checkable
class Trainable(Model, Protocol):
    """A model whose steps can be run with gradients: `PromptableModel` and pocket."""

    device: str
    network: nn.Module

    @property
    def input_side(self) -> int:
        """Side of the square input."""

    @property
    def mask_side(self) -> int:
        """Side of the logits that come back."""

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """`encoder`, `prompt_encoder` and `decoder`."""

    def frame(self, size: Size, crop_box: CropBox | None = None) -> Frame:
        """How an image lies in the input."""

    def preprocess(self, image: Image, frame: Frame) -> Float[Tensor, "3 s s"]:
        """The normalised input."""

    def embed(self, pixels: Float[Tensor, "b 3 s s"]) -> dict[str, Tensor]:
        """The encoder's features."""

    def respond(
        self,
        features: Mapping[str, Tensor],
        image_rows: Int[Tensor, "n"],
        prompts: PromptTensors,
        multimask_output: bool,
    ) -> tuple[Float[Tensor, "n c m m"], Float[Tensor, "n c"]]:
        """Mask logits and predicted IoU."""

    def save(self, folder: Path) -> None:
        """Writes the weights."""


def as_trainable(model: Model) -> Trainable:
    """The same model, if it can be trained by prompts; a detector that knows names alone has no decoder for them."""
    if not isinstance(model, Trainable) or not set(LEARNABLE) <= set(model.parts):
        raise ValueError(f"{model.name} cannot be trained by prompts: give a model of sam, mobile, sam2 or pocket")
    return model


def parts_of(learn: Sequence[str]) -> tuple[str, ...]:
    """The parts that are to learn, each once; `all` is every part."""
    unknown = [part for part in learn if part not in (*LEARNABLE, "all")]
    if unknown or not learn:
        raise ValueError(f"learn must be {', '.join(LEARNABLE)} or all, got {unknown[0] if unknown else 'nothing'}")
    return LEARNABLE if "all" in learn else tuple(dict.fromkeys(learn))


def parameters_of(model: Trainable, learn: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that is to learn, each parameter once."""
    seen: set[int] = set()
    chosen: dict[str, list[nn.Parameter]] = {}
    for part in parts_of(learn):
        chosen[part] = [p for p in model.parts[part].parameters() if id(p) not in seen]
        seen |= {id(p) for p in chosen[part]}
    return chosen
