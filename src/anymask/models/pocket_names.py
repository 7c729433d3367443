"""Many names on one image for pocket: what a name costs goes by how likely it is there.

1. *Presence* needs the tokens alone. The image that a name sees differs from that of others by its own score map, so
   that only this is drawn for each, and no mask is made.
2. *The union* is one mask token, made of names that are not absent for certain.
3. *Instances* are looked for twice, since each way finds what the other misses: a click on each peak of the union, and
   a box around each part of it, both with the name. What the network is unsure of gets no mask.

A name is decoded with names of as many text slots, so that its answer does not depend on its company.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.pocket_network import DRAWN_CHANNELS, PocketFeatures, PocketNetwork, PocketPrompts
from anymask.models.protocol import Grounded

AT_ONCE = 4  # names or instances: larger chunks leave the cache
NEGLIGIBLE = 0.05  # presence below which there is no union
ABSENT = -20.0  # logits of a union that was not made
MOST_PEAKS, MOST_PARTS = 32, 32  # instances sought for one name
LEAST_PART = 4  # cells of the union that a part of it needs
PART_COUNTS = 0.9  # what a part's score counts beside that of a peak
ON_UNION = 0.3  # of the mask of a peak


@dataclass(frozen=True, eq=False)
class PocketName:
    """A name as tokens, and the presence from which on its instances are wanted."""

    tokens: Float[Tensor, "l t"]
    presence: float


class NameStage:
    """The decoder made ready for names on one image; instances that it is less sure of than `least` get no mask."""

    def __init__(self, network: PocketNetwork, features: PocketFeatures, least: float) -> None:
        self.network, self.decoder, self.features, self.least = network, network.decoder, features, least
        self.size = (features.s4.shape[2], features.s4.shape[3])
        self.blank = self.decoder.drawing.conv4(features.s4.new_zeros(1, DRAWN_CHANNELS, *self.size))
        self.unmixed = features.s16 + self.decoder.prompt_encoder.no_mask_embed.weight[0][:, None, None]

    def ground(self, names: Sequence[PocketName], instances: bool) -> list[Grounded]:
        """Presence of every name; its union and, if wanted, its instances where presence says so."""
        found: dict[int, Grounded] = {}
        slots = [max(self.network.config.text_slots, len(name.tokens)) for name in names]
        for count in dict.fromkeys(slots):
            alike = [i for i, own in enumerate(slots) if own == count]
            for start in range(0, len(alike), AT_ONCE):
                some = alike[start : start + AT_ONCE]
                answers = self._ground_some([names[i] for i in some], count, instances)
                found.update(zip(some, answers, strict=True))
        return [found[i] for i in range(len(names))]

    def _ground_some(self, names: Sequence[PocketName], slots: int, instances: bool) -> list[Grounded]:
        """Names of as many slots, in one batch."""
        texts = _Texts.of(names, slots)
        score_maps = self._score_maps(texts)
        seen = self._look(self._prompts(texts), self._drawn(score_maps))
        presence = self.decoder.presence_head(seen.tokens[:, 0]).squeeze(1).sigmoid()
        least = presence.new_tensor([name.presence if instances else NEGLIGIBLE for name in names])
        there = presence >= least
        unions = presence.new_full((len(names), *self.size), ABSENT)
        unions[there] = self._masks(seen, there.nonzero()[:, 0])
        found = list[Grounded]()
        for i, union in enumerate(unions):
            wanted = instances and bool(there[i])
            logits, scores = self._instances(union, texts[i], score_maps[i]) if wanted else (unions[:0], presence[:0])
            found.append(Grounded(float(presence[i]), union.cpu(), logits.cpu(), scores.cpu()))
        return found

    def _instances(
        self, union: Float[Tensor, "qh qw"], text: "_Texts", score_map: Float[Tensor, "eh ew"]
    ) -> tuple[Float[Tensor, "k qh qw"], Float[Tensor, "k"]]:
        """Masks and scores of the peaks of the union that are apart, then of its parts."""
        peaks, parts = find_peaks(union), find_parts(union)
        places = 4 * torch.cat([peaks.flip(1).repeat(1, 2) + 0.5, parts])
        counts = torch.cat([places.new_ones(len(peaks)), places.new_full((len(parts),), PART_COUNTS)])
        logits, scores, is_peak = [union[None][:0]], [counts[:0]], torch.arange(len(places)) < len(peaks)
        kept = list[Tensor]()
        for rows in torch.arange(len(places)).split(AT_ONCE):
            prompts = self._prompts(text.repeated(len(rows)), places[rows])
            seen = self._look(prompts, self.decoder.drawing(prompts, score_map.expand(len(rows), -1, -1)))
            score = self.decoder.predicted_iou(seen.tokens)[:, 0] * counts[rows]
            sure = (score >= self.least).nonzero()[:, 0]
            logits.append(self._masks(seen, sure))
            scores.append(score[sure])
            kept.append(is_peak[rows][sure.cpu()])
        return _settled(torch.cat(logits), torch.cat(scores), torch.cat([is_peak[:0], *kept]), union > 0)

    def _score_maps(self, texts: "_Texts") -> Float[Tensor, "n eh ew"]:
        pixels = self.features.text_s8.expand(len(texts.tokens), -1, -1, -1)
        score_maps: Tensor = self.network.text_score(pixels, texts.tokens, texts.filled)
        return score_maps

    def _drawn(self, score_maps: Float[Tensor, "n eh ew"]) -> tuple[Tensor, Tensor, Tensor]:
        """As `Drawing` draws a text alone: of its maps all but the last are empty."""
        drawing = self.decoder.drawing
        scores = torch.tanh(functional.interpolate(score_maps[:, None], size=self.size, mode="bilinear") / 4)
        return drawing.coarsen(self.blank + functional.conv2d(scores, drawing.conv4.weight[:, -1:], padding=1))

    def _look(self, prompts: PocketPrompts, drawn: tuple[Tensor, Tensor, Tensor]) -> "_Seen":
        drawn4, drawn8, drawn16 = drawn
        image = self.decoder.mix16(self.unmixed + drawn16)
        tokens, image = self.decoder.attend(self.decoder.tokens(prompts), image.flatten(2).transpose(1, 2))
        return _Seen(tokens, image, drawn8, drawn4)

    def _masks(self, seen: "_Seen", rows: Int[Tensor, "k"]) -> Float[Tensor, "k qh qw"]:
        """Of the single mask's token."""
        if not len(rows):
            return self.features.s4.new_zeros(0, *self.size)
        s8, s4 = self.features.s8 + seen.drawn8[rows], self.features.s4 + seen.drawn4[rows]
        return self.decoder.masks(seen.tokens[rows], seen.image[rows], s8, s4, count=1)[:, 0]

    def _prompts(self, texts: "_Texts", places: Float[Tensor, "n 4"] | None = None) -> PocketPrompts:
        """Each text alone, or with a box; a box without extent is a click."""
        n, device = len(texts.tokens), texts.tokens.device
        nowhere = places is None
        places = texts.tokens.new_zeros(n, 4) if places is None else places
        has_box = places[:, 2] > places[:, 0]
        return PocketPrompts(
            points=places[:, None, :2],
            labels=torch.where(has_box | nowhere, -1, 1)[:, None],
            boxes=places,
            has_box=has_box,
            masks=places.new_zeros(1, 1, 1).expand(n, *self.size),
            has_mask=torch.zeros(n, dtype=torch.bool, device=device),
            text_tokens=texts.tokens,
            text_mask=texts.filled,
        )


@dataclass(frozen=True, eq=False)
class _Seen:
    """Tokens and image after they have seen each other, and what masks are made of beside them."""

    tokens: Float[Tensor, "n k d"]
    image: Float[Tensor, "n i d"]
    drawn8: Float[Tensor, "n d8 eh ew"]
    drawn4: Float[Tensor, "n d4 qh qw"]


@dataclass(frozen=True, eq=False)
class _Texts:
    """Tokens of names, and which of their slots are filled."""

    tokens: Float[Tensor, "n l t"]
    filled: Bool[Tensor, "n l"]

    @classmethod
    def of(cls, names: Sequence[PocketName], slots: int) -> "_Texts":
        padded = [functional.pad(name.tokens, (0, 0, 0, slots - len(name.tokens))) for name in names]
        counts = torch.tensor([len(name.tokens) for name in names], device=padded[0].device)
        return cls(torch.stack(padded), torch.arange(slots, device=counts.device) < counts[:, None])

    def __getitem__(self, row: int) -> "_Texts":
        return _Texts(self.tokens[row : row + 1], self.filled[row : row + 1])

    def repeated(self, n: int) -> "_Texts":
        return _Texts(self.tokens.expand(n, -1, -1), self.filled.expand(n, -1))


def find_peaks(union: Float[Tensor, "qh qw"]) -> Int[Tensor, "k 2"]:
    """Cells (y x) deep inside the parts of the union: local maxima of its smoothed probability, surest first."""
    probs = functional.avg_pool2d(union.sigmoid()[None, None], 5, 1, 2)[0, 0]
    highest = functional.max_pool2d(probs[None, None], 9, 1, 4)[0, 0]
    found = ((probs == highest) & (probs > 0.4)).nonzero()
    order = probs[found[:, 0], found[:, 1]].argsort(descending=True)
    return found[order][:MOST_PEAKS]


def find_parts(union: Float[Tensor, "qh qw"]) -> Int[Tensor, "k 4"]:
    """Boxes x0 y0 x1 y1, in cells, of what of the union is connected, the largest first."""
    above = (union > 0).cpu().numpy().astype(np.uint8)
    boxes = cv2.connectedComponentsWithStats(above, connectivity=8)[2][1:]
    boxes = boxes[boxes[:, 4] >= LEAST_PART]
    x, y, w, h, _ = boxes[np.argsort(-boxes[:, 4], kind="stable")][:MOST_PARTS].T.astype(np.int64)
    return torch.from_numpy(np.stack([x, y, x + w, y + h], axis=1)).to(union.device)


def _settled(
    logits: Float[Tensor, "k qh qw"],
    scores: Float[Tensor, "k"],
    is_peak: Bool[Tensor, "k"],
    union: Bool[Tensor, "qh qw"],
) -> tuple[Float[Tensor, "j qh qw"], Float[Tensor, "j"]]:
    """Without peaks that repeat others; that the parts repeat them is left to who knows all names."""
    peaks, parts = is_peak.nonzero()[:, 0], (~is_peak).nonzero()[:, 0]
    kept = torch.cat(
        [peaks.to(scores.device)[_distinct(logits[is_peak] > 0, scores[is_peak], union)], parts.to(scores.device)]
    )
    return logits[kept], scores[kept]


def _distinct(
    masks: Bool[Tensor, "k qh qw"], scores: Float[Tensor, "k"], union: Bool[Tensor, "qh qw"], overlap: float = 0.5
) -> Int[Tensor, "j"]:
    """Rows largely on the union, best first, none sharing `overlap` or more of the smaller mask with a better row."""
    flat = masks.flatten(1).float()
    areas = flat.sum(1)
    on_union = (flat @ union.flatten().float()) / areas.clamp(min=1)
    shared = (flat @ flat.T) / torch.minimum(areas[:, None], areas[None]).clamp(min=1)
    kept: list[int] = []
    for row in (scores * on_union).argsort(descending=True).tolist():
        if areas[row] > 0 and on_union[row] > ON_UNION and all(shared[row, other] < overlap for other in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.long, device=masks.device)
