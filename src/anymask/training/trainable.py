"""Which parts of a model can be trained by prompts, and with which parameters."""

from collections.abc import Sequence

from torch import nn

from anymask.models.promptable import PromptableModel
from anymask.models.protocol import Model

LEARNABLE = ("decoder", "prompt_encoder", "encoder")


def as_trainable(model: Model) -> PromptableModel:
    """The same model, if it can be trained by prompts; a detector that knows names alone has no decoder for them."""
    if not isinstance(model, PromptableModel) or not set(LEARNABLE) <= set(model.parts):
        raise ValueError(f"{model.name} cannot be trained by prompts: give a model of sam, mobile, sam2 or pocket")
    return model


def parts_of(learn: Sequence[str]) -> tuple[str, ...]:
    """The parts that are to learn, each once; `all` is every part."""
    unknown = [part for part in learn if part not in (*LEARNABLE, "all")]
    if unknown or not learn:
        raise ValueError(f"learn must be {', '.join(LEARNABLE)} or all, got {unknown[0] if unknown else 'nothing'}")
    return LEARNABLE if "all" in learn else tuple(dict.fromkeys(learn))


def parameters_of(model: PromptableModel, learn: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that is to learn, each parameter once."""
    seen: set[int] = set()
    chosen: dict[str, list[nn.Parameter]] = {}
    for part in parts_of(learn):
        chosen[part] = [p for p in model.parts[part].parameters() if id(p) not in seen]
        seen |= {id(p) for p in chosen[part]}
    return chosen
