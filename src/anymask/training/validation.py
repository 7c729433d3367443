"""A quick look at a few validation images while training: a guide, not a measurement (that is `evaluation`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from anymask.models.pocket_network import PocketFeatures, PocketNetwork, PocketPrompts, normalise
from anymask.ops.losses import soft_iou
from anymask.training.pictures import Picture
from anymask.training.samples import PocketSamples, SampleSettings
from anymask.training.simulation import PhraseTable, corrected, empty_prompts

IMAGES = 48


@torch.inference_mode()
def quick_validation(
    network: PocketNetwork, pictures: Sequence[Picture], table: PhraseTable, phrases: Mapping[str, list[int]]
) -> dict[str, float]:
    """IoU at a quarter of the input: box, one click (chosen, best), three clicks, text; and false positives."""
    side = network.config.input_size[0]
    wanted = SampleSettings(
        side=side, objects=8, whole_image=1.0, paste=0.0, regions=0.0, synonyms=0.0, groups=0.0, seed=1
    )
    samples = PocketSamples(pictures, phrases, wanted)
    totals: dict[str, list[Tensor]] = {}
    for i in range(min(IMAGES, len(pictures))):
        for name, values in _measure(network, samples[i], table).items():
            totals.setdefault(name, []).append(values)
    return {name: torch.cat(values).mean().item() for name, values in totals.items()}


def _measure(network: PocketNetwork, sample: dict[str, Tensor], table: PhraseTable) -> dict[str, Tensor]:
    device = table.tokens.device
    sample = {name: value.to(device) for name, value in sample.items()}
    features, targets = network.encode(normalise(sample["pixels"][None])), sample["targets"]
    rows = torch.zeros(len(targets), dtype=torch.long, device=device)
    blank = empty_prompts(len(targets), targets.shape[-1], table)
    boxed = replace(blank, boxes=sample["boxes"], has_box=torch.ones_like(blank.has_box))
    clicked = replace(blank, points=sample["points"][:, None], labels=torch.ones_like(blank.labels))
    output = network.decode(features, rows, clicked)
    chosen = output.logits[torch.arange(len(rows), device=device), output.predicted_iou.argmax(1)]
    return {
        "val_box": soft_iou(network.decode(features, rows, boxed).logits[:, 0], targets),
        "val_click1": soft_iou(chosen, targets),
        "val_best": soft_iou(output.logits, targets[:, None].expand_as(output.logits)).amax(1),
        "val_click3": soft_iou(_correct_twice(network, features, clicked, chosen, targets), targets),
        **_measure_names(network, features, sample, table),
    }


def _correct_twice(
    network: PocketNetwork, features: PocketFeatures, prompts: PocketPrompts, logits: Tensor, targets: Tensor
) -> Tensor:
    rng, rows = np.random.default_rng(0), torch.zeros_like(prompts.labels[:, 0])
    for _ in range(2):
        prompts = corrected(prompts, logits, targets, rng)
        logits = network.decode(features, rows, prompts).logits[:, 0]
    return logits


def _measure_names(
    network: PocketNetwork, features: PocketFeatures, sample: dict[str, Tensor], table: PhraseTable
) -> dict[str, Tensor]:
    asked = (sample["present"] >= 0).nonzero()[:, 0]
    if not len(asked):
        return {}
    unions, there = sample["unions"][asked], sample["present"][asked] == 1
    names = empty_prompts(len(asked), unions.shape[-1], table, sample["phrases"][asked])
    output = network.decode(features, torch.zeros_like(asked), names)
    found = output.presence > 0
    return {"val_text": (soft_iou(output.logits[:, 0], unions) * found)[there], "val_false": found[~there].float()}
