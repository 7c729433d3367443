"""What a textual inversion would take, before anything is fetched or learned: memory and time at full size.

The network is built on the meta device and run on tensors that have shapes alone (PyTorch's FakeTensorMode): operations
are counted, and what backward needs is added up. Seconds are operations by the speed of a product of matrices on this
machine, so that they are a lower bound.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import pytorch_utils

from anymask.adapting.beginnings import begin
from anymask.adapting.lessons import Lessons
from anymask.adapting.settings import InversionSettings
from anymask.data.files import read_json
from anymask.models import catalogue, sam3_keys, sources
from anymask.models.devices import pick_device
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.sam3 import Sam3
from anymask.models.word_space import WordSpace, word_space_of

SIDE, PRODUCTS = 1024, 5  # of matrices that are timed
PUBLISHED = {"sam3": "sam3_video", "sam3-lite-text": "sam3_lite_text"}


@dataclass(frozen=True)
class Estimate:
    """Of one run: megabytes and operations (multiplications and additions) of an image, and seconds on this machine."""

    model: str
    device: str
    learned_numbers: int
    weights_mb: float
    features_mb: float
    kept_for_backward_mb: float
    memory_mb: float
    encode_teraflop: float
    forward_teraflop: float
    step_teraflop: float
    gigaflop_per_second: float
    encode_seconds: float
    step_seconds: float
    run_seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"{self.model} on {self.device}: {self.learned_numbers:,} numbers learn; its weights take"
            f" {self.weights_mb:,.0f} MB",
            f"a view of an image: features of {self.features_mb:,.0f} MB, {1000 * self.encode_teraflop:,.1f} GFLOP once"
            f" (at least {self.encode_seconds:.1f} s), {self.kept_for_backward_mb:,.0f} MB kept for the way back",
            f"a step: {1000 * self.step_teraflop:,.1f} GFLOP, at least {self.step_seconds:.2f} s at"
            f" {self.gigaflop_per_second:,.0f} GFLOP/s; the run at least {self.run_seconds:,.0f} s",
            f"memory: at least {self.memory_mb:,.0f} MB",
        ]

    def as_json(self) -> dict[str, Any]:
        """Rounded to four digits."""
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()}


def estimate(settings: InversionSettings, lessons: Lessons) -> Estimate:
    """Of a run on these images. Raises ValueError for a model that has no words.

    Without its tokenizer, which lies beside the weights, each word of the phrase counts as one vector.
    """
    space, shapes_alone = _space_of(settings.model)
    device = pick_device(settings.device)
    start = (
        begin(space, settings.start or settings.seed_text, settings.tokens) if _is_known(settings, shapes_alone) else ()
    )
    tokens = len(start) or settings.tokens or len(settings.seed_text.split())
    learned, without = len(lessons.learn), len(lessons.without)
    batch = min(learned, settings.batch_size) + min(without, max(1, settings.batch_size // 2))
    views = settings.views or (1 if learned == 1 else 2)
    at_once = min(batch, settings.at_once or space.at_once)
    with _without_values() if shapes_alone else nullcontext():
        if shapes_alone:
            _forget_values(space.model.network)
        features, encode = _encode(space.model)
        used = {name: features[name] for name in space.feature_names}
        forward, both, kept = _step(space, used, tokens)
    parameters = (parameter for part in space.readers.values() for parameter in part.parameters())
    weights = _megabytes([*space.model.network.parameters(), *parameters])
    each, speed = _megabytes(used.values()), _speed(device)
    judged = (1 + settings.steps // settings.validate_every) * (len(lessons.held_out) or learned)
    encoded = (learned + without) * views + len(lessons.held_out)
    return Estimate(
        model=settings.model,
        device=device,
        learned_numbers=tokens * space.width,
        weights_mb=weights,
        features_mb=each,
        kept_for_backward_mb=kept,
        memory_mb=weights + at_once * (each + kept),
        encode_teraflop=encode,
        forward_teraflop=forward * batch,
        step_teraflop=both * batch,
        gigaflop_per_second=speed,
        encode_seconds=1000 * encode / speed,
        step_seconds=1000 * both * batch / speed,
        run_seconds=1000 * (settings.steps * both * batch + encoded * encode + judged * forward) / speed,
    )


def _is_known(settings: InversionSettings, shapes_alone: bool) -> bool:
    """Whether the beginning can be read: not without a tokenizer, and the nearest phrase not without a look."""
    return not shapes_alone and settings.start != "nearest"


def _space_of(name: str) -> tuple[WordSpace, bool]:
    """The words of a model, and whether it is without weights: SAM 3 always is, whether it is here or not."""
    config = _sam3_config(name)
    if config is None:
        return word_space_of(load(name, "cpu", runtime="eager")), False
    model = Sam3.without_weights(config, name)
    model.device = "cpu"  # where attention keeps no weights for the way back, as on a GPU
    model.__dict__["tokenizer"] = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=1)  # marks are enough
    # Transformers keeps the size of the coarsest map as a tensor, and reads its values.
    model.detector.detr_decoder.register_forward_pre_hook(_with_sizes, with_kwargs=True)
    return model.words, True


def _with_sizes(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The size of the one map as numbers: it is square."""
    side = math.isqrt(kwargs["vision_features"].shape[1])
    return args, {**kwargs, "spatial_shapes": np.asarray([[side, side]])}


def _sam3_config(name: str) -> dict[str, Any] | None:
    """By a folder, or by the published sizes, which are transformers' defaults; None for another family."""
    given = Path(name).expanduser()
    entry, path = catalogue.named(name), given if given.exists() else sources.find(name)
    if path is not None and path.is_dir():
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        return config if config.get("model_type") in sam3_keys.MODEL_TYPES else None
    if path is not None or entry is None or entry.family != "sam3":
        return None
    return {"model_type": PUBLISHED[entry.name]}


@contextmanager
def _without_values() -> Iterator[None]:
    """Tensors have shapes alone; transformers keeps none of them (it caches codes of positions, by shape)."""
    compiles: Any = pytorch_utils
    usual, compiles.is_torchdynamo_compiling = compiles.is_torchdynamo_compiling, lambda: True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        compiles.is_torchdynamo_compiling = usual


def _forget_values(network: nn.Module) -> None:
    """Parameters and buffers as tensors of the mode that is on; `Module.to` cannot do it."""
    for module in network.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    shape = torch.empty(tensor.shape, dtype=tensor.dtype)
                    tensors[name] = nn.Parameter(shape, requires_grad=False) if tensors is held[0] else shape


@torch.no_grad()
def _encode(model: PromptableModel) -> tuple[dict[str, Tensor], float]:
    """Features of one image, and the teraflop they cost."""
    pixels = torch.zeros(1, 3, *model.input_size, device=next(model.network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        features = model.embed(pixels)
    return features, counter.get_total_flops() / 1e12


def _step(space: WordSpace, features: Mapping[str, Tensor], tokens: int) -> tuple[float, float, float]:
    """Of one image the teraflop of the way there and of both ways, and the megabytes kept between them."""
    vectors = torch.zeros(tokens, space.width, device=space.table.device, requires_grad=True)
    own = {parameter.untyped_storage()._cdata for parameter in space.model.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        answers = space.answer(space.prepare(features), vectors)
        forward = counter.get_total_flops() / 1e12
        parts = (answers.logits, answers.scores, answers.presence, answers.boxes)
        torch.stack([part.sum() for part in parts if part is not None]).sum().backward()
    return forward, counter.get_total_flops() / 1e12, sum(kept.values()) / 1e6


def _speed(device: str) -> float:
    """Billions of operations a second in a product of matrices."""
    a = torch.randn(SIDE, SIDE, device=device)
    (a @ a).sum().item()
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        (a @ a).sum().item()
    return 2e-9 * SIDE**3 * PRODUCTS / (time.perf_counter() - started)


def _megabytes(tensors: Iterable[Tensor]) -> float:
    """Each tensor once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values()) / 1e6
