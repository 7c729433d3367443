"""One image-text model of open_clip: where its weights lie, how it is loaded, what it makes of pictures and texts.

Weights are a file of the user, or a tag that open_clip knows and the hub's cache holds; the hub is asked only for what
is not here, and only where it may be. Nothing in a file is run.
"""

import logging
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from anymask.data.files import sha256_of
from anymask.models.checkpoints import check_file
from anymask.models.protocol import CheckpointError
from anymask.models.sources import download, is_offline

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BATCH = 16  # pictures or texts at once
_log = logging.getLogger("anymask")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """An architecture and a tag of open_clip (or the path of a file with such weights), and how much its word counts.

    The weights of OpenAI in a file of one's own want the architecture that ends in `-quickgelu`.
    """

    architecture: str
    pretrained: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"the weight of {self.name} must be a number above 0, got {self.weight:g}")

    @property
    def name(self) -> str:
        """As `parse_member` reads it, without the weight."""
        return f"{self.architecture}:{self.pretrained}"


# Larger models count more: by zero-shot accuracy on ImageNet (open_clip, docs/openclip_results.csv) they stand so.
MEMBERS = (
    Member("ViT-H-14", "laion2b_s32b_b79k", 0.35),
    Member("ViT-L-14", "openai", 0.25),
    Member("EVA02-L-14", "merged2b_s4b_b131k", 0.25),
    Member("ViT-B-16-SigLIP", "webli", 0.15),
)

# Where open_clip has them from, and the tokenizer of its own that one needs: looked up without importing it.
HUB_IDS = {
    "ViT-H-14:laion2b_s32b_b79k": ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", ""),
    "ViT-L-14:openai": ("timm/vit_large_patch14_clip_224.openai", ""),
    "EVA02-L-14:merged2b_s4b_b131k": ("timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", ""),
    "ViT-B-16-SigLIP:webli": ("timm/ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"),
}


def parse_member(text: str) -> Member:
    """`ARCHITECTURE:TAG_OR_FILE=WEIGHT`, as ViT-L-14:openai=0.25; without a weight it is 1. Raises ValueError."""
    found = re.fullmatch(r"([^:=\s]+):(.+?)(?:=([^=]*))?", text.strip())
    if found is None:
        raise ValueError(
            f"a scorer must be written ARCHITECTURE:TAG_OR_FILE=WEIGHT (ViT-L-14:openai=0.25), got {text!r}"
        )
    architecture, pretrained, weight = found.groups()
    try:
        return Member(architecture, pretrained, 1.0 if weight is None else float(weight))
    except ValueError as error:
        if weight is not None and "must be a number above" in str(error):
            raise
        raise ValueError(
            f"the weight of {architecture}:{pretrained} must be a number above 0, got {weight!r}"
        ) from error


def is_here(member: Member) -> bool:
    """Whether open_clip is installed and all files of a member are on this machine."""
    return find_spec("open_clip") is not None and _found(member) is not None


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A loaded member. Its vectors are of length 1; `scale` and `bias` make logits of their products.

    With a bias the model was trained to say yes or no of each text (SigLIP, Zhai et al. 2023), without to choose among
    texts (CLIP, Radford et al. 2021).
    """

    member: Member
    network: nn.Module
    tokenize: Callable[[list[str]], Tensor]
    file: Path
    device: str = "cpu"
    mean: Sequence[float] = field(default=(0.5, 0.5, 0.5))
    std: Sequence[float] = field(default=(0.5, 0.5, 0.5))

    @classmethod
    def load(cls, member: Member, device: str = "cpu", fetch: bool = True) -> "ClipModel":
        """Ready for use. Raises CheckpointError for what cannot be loaded, with what to do."""
        if find_spec("open_clip") is None:
            raise CheckpointError(f"{member.name} needs open_clip: pip install 'anymask[clip]'")
        file = _found(member) or _fetched(member, fetch)
        check_file(file)
        network, tokenize = _built(member, file)
        about: Any = network.visual.preprocess_cfg  # type: ignore[union-attr]
        ready = network.to(device).eval().requires_grad_(False)
        return cls(member, ready, tokenize, file, device, about["mean"], about["std"])

    @cached_property
    def digest(self) -> str:
        """Of the file of weights; the hub's cache has it in the name of the file."""
        blob = self.file.resolve().name
        return blob if _SHA256.fullmatch(blob) else sha256_of(self.file)

    @property
    def image_size(self) -> int:
        """The side of its square input in pixels."""
        size: Any = self.network.visual.image_size  # type: ignore[union-attr]
        return int(size[0] if isinstance(size, tuple | list) else size)

    @property
    def scale(self) -> float:
        """What products of vectors are multiplied by."""
        return float(self.network.logit_scale.detach().exp())  # type: ignore[operator]

    @property
    def bias(self) -> float | None:
        """What is added then, if the model has it."""
        bias: Any = self.network.logit_bias
        return None if bias is None else float(bias)

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "n d"]:
        """Vectors of pictures of any size, stretched to its input, on the CPU."""
        rows = [self._embed(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
        return torch.cat(rows)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, on the CPU; what is longer than the model reads is cut off."""
        rows = [
            self.network.encode_text(self.tokenize(list(texts[i : i + BATCH])).to(self.device), normalize=True)  # type: ignore[operator]
            for i in range(0, len(texts), BATCH)
        ]
        return torch.cat(rows).float().cpu()

    def _embed(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        sized = np.stack([resized(picture, self.image_size) for picture in pictures]).astype(np.float32) / 255
        normal = (sized - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        pixels = torch.from_numpy(normal.transpose(0, 3, 1, 2).copy()).to(self.device)
        vectors: Tensor = self.network.encode_image(pixels, normalize=True)  # type: ignore[operator]
        return vectors.float().cpu()


def resized(picture: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Stretched to a square: averaged where it shrinks, else bicubic."""
    if picture.shape[:2] == (side, side):
        return picture
    shrinks = min(picture.shape[:2]) > side
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _found(member: Member) -> Path | None:
    """The file of weights, if it and the tokenizer it needs are on this machine."""
    own = Path(member.pretrained).expanduser()
    if own.is_file():
        return own
    hub_id, tokenizer = _hub_id(member), _hub_tokenizer(member)
    file = next((path for name in WEIGHTS if (path := _cached(hub_id, name))), None) if hub_id else None
    return file if not tokenizer or (file and _cached(tokenizer, TOKENIZER[0])) else None


def _fetched(member: Member, fetch: bool) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub_id, tokenizer = _hub_id(member), _hub_tokenizer(member)
    if not hub_id:
        raise _unknown(member)
    fetch_it = f"where there is a network run `hf download {hub_id}`, or give the file of its weights"
    if not fetch or is_offline():
        raise CheckpointError(f"{member.name} is not on this machine: {fetch_it}")
    _log.info("fetching %s from %s", member.name, hub_id)
    try:
        if tokenizer:
            download(tokenizer, TOKENIZER)
        for name in WEIGHTS:
            download(hub_id, (name,))
            if (file := _found(member)) is not None:
                return file
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{member.name} is not on this machine and could not be had ({reason}): {fetch_it}"
        ) from error
    raise CheckpointError(f"{hub_id} holds none of {', '.join(WEIGHTS)}: give the file of its weights")


def _built(member: Member, file: Path) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    import open_clip

    about = open_clip.get_pretrained_cfg(member.architecture, member.pretrained)
    wrong = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, StopIteration, AssertionError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = open_clip.create_model(
                member.architecture,
                str(file),
                force_quick_gelu=bool(about.get("quick_gelu")),
                force_preprocess_cfg=_colours(member),
                weights_only=True,
            )
        return network, _tokenizer(member, file)
    except (*wrong, EOFError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{file} cannot be loaded as {member.architecture} ({type(error).__name__}: {reason}): fetch it again, or"
            " name its architecture"
        ) from error


def _colours(member: Member) -> dict[str, Any]:
    """Mean and deviation of the colours that the tag was trained with; of a file, those of all tags if they agree."""
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(member.architecture)
    tags = [member.pretrained] if open_clip.is_pretrained_cfg(member.architecture, member.pretrained) else known
    abouts = [open_clip.get_pretrained_cfg(member.architecture, tag) for tag in tags]
    found = {(tuple(about["mean"]), tuple(about["std"])) for about in abouts}
    return dict(zip(("mean", "std"), found.pop(), strict=True)) if len(found) == 1 else {}


def _tokenizer(member: Member, file: Path) -> Callable[[list[str]], Tensor]:
    """That of the model; one of the hub from beside the weights or its cache, never from the network."""
    import open_clip

    name = _hub_tokenizer(member)
    if not name:
        plain: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(member.architecture)
        return plain
    at_hub = _cached(name, TOKENIZER[0])
    beside = next((path for path in (file.parent / TOKENIZER[0], at_hub) if path and path.is_file()), None)
    if beside is None:
        raise FileNotFoundError(f"its tokenizer, {TOKENIZER[0]} of {name}, must lie beside it")
    text = open_clip.get_model_config(member.architecture)["text_cfg"]
    options = {**text.get("tokenizer_kwargs", {}), "local_files_only": True}
    loaded: Callable[[list[str]], Tensor] = open_clip.tokenizer.HFTokenizer(
        str(beside.parent), context_length=text["context_length"], **options
    )
    return loaded


def _hub_id(member: Member) -> str:
    """The repository of the tag's weights; empty for what open_clip does not know."""
    if member.name in HUB_IDS:
        return HUB_IDS[member.name][0]
    import open_clip

    about = open_clip.get_pretrained_cfg(member.architecture, member.pretrained)
    return str(about.get("hf_hub", "")).rstrip("/")


def _hub_tokenizer(member: Member) -> str:
    """The repository of the tokenizer; empty where open_clip has it with it."""
    if member.name in HUB_IDS:
        return HUB_IDS[member.name][1]
    import open_clip

    config = open_clip.get_model_config(member.architecture) or {"text_cfg": {}}
    return str(config["text_cfg"].get("hf_tokenizer_name", ""))


def _cached(hub_id: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file)
    return Path(found) if isinstance(found, str) else None


def _unknown(member: Member) -> CheckpointError:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(member.architecture)
    known = f"its tags are {', '.join(tags)}" if tags else "open_clip.list_pretrained() has what can be named"
    return CheckpointError(f"{member.name} is no file and no tag that open_clip can fetch from the hub: {known}")
