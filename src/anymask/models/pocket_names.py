"""Many names on one image for pocket: what a name costs goes by how likely it is there.

1. *Presence* needs the tokens alone. What a name sees of the image differs from what others see by its score map, so
   only this is drawn for each, and no mask is made.
2. *The union* is one mask token, made of names that are not absent for certain.
3. *Instances* are looked for twice, as each way finds what the other misses: a click on each peak of the union, and a
   box around each part of it (8-connected), both with the name. A click or a box changes the image around it alone, and
   its mask ends at the part, so that only windows are computed; what the network is unsure of gets no mask.

A name is decoded with names of as many text slots, so that its answer does not depend on its company.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from anymask.models.pocket_network import DRAWN_CHANNELS, PLACE_CHANNELS, PocketFeatures, PocketNetwork, PocketPrompts
from anymask.models.protocol import Grounded
from anymask.types import Size

AT_ONCE = 4  # names or instances: larger chunks leave the cache
NEGLIGIBLE = 0.05  # presence below which there is no union
ABSENT = -20.0  # logits of what was not made
MOST_PEAKS, MOST_PARTS = 32, 32  # instances sought for one name
LEAST_PART = 4  # cells of a part of the union that is asked for
PART_COUNTS = 0.9  # what the score of a part counts beside that of a peak
ON_UNION = 0.3  # of the mask of a peak, at least
STRIDE, FINE = 16, 4  # pixels of a cell of the transformer's image, and of the union
CLICK_REACH, BOX_REACH = 2, 1  # cells that they are drawn beyond their own, and a mask may leave its part


@dataclass(frozen=True, eq=False)
class PocketName:
    """A name as tokens, and the presence from which on its instances are wanted."""

    tokens: Float[Tensor, "l t"]
    presence: float


class NameStage:
    """The decoder made ready for names on one image; instances that score less than `least` get no mask."""

    def __init__(self, network: PocketNetwork, features: PocketFeatures, least: float) -> None:
        self.network, self.decoder, self.features, self.least = network, network.decoder, features, least
        self.grid: Size = (features.s16.shape[2], features.s16.shape[3])
        self.size: Size = (features.s4.shape[2], features.s4.shape[3])
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
        drawn = self._drawn(texts)
        tokens, image = self._attend(_prompts(texts), drawn.mixed)
        presence = self.decoder.presence_head(tokens[:, 0]).squeeze(1).sigmoid()
        least = [name.presence if instances else NEGLIGIBLE for name in names]
        found = list[Grounded]()
        for i, chance in enumerate(presence.tolist()):
            union, is_there = presence.new_full(self.size, ABSENT), chance >= least[i]
            logits, scores = union[None][:0], presence[:0]
            if is_there:
                s8, s4 = self.features.s8 + drawn.s8[i : i + 1], self.features.s4 + drawn.s4[i : i + 1]
                union = self.decoder.upscale(tokens[i : i + 1], image[i : i + 1], s8, s4, count=1)[0, 0]
            if is_there and instances:
                logits, scores = self._instances(union, texts[i], drawn[i])
            found.append(Grounded(chance, union.cpu(), logits.cpu(), scores.cpu()))
        return found

    def _instances(
        self, union: Float[Tensor, "qh qw"], text: "_Texts", drawn: "_Drawn"
    ) -> tuple[Float[Tensor, "k qh qw"], Float[Tensor, "k"]]:
        """Masks and scores of the peaks of the union that are apart, then of its parts."""
        places, limits = find_places(union)
        is_click = places[:, 2] <= places[:, 0]
        counts = torch.where(is_click, 1.0, PART_COUNTS)
        logits, scores, sure = [union[None][:0]], [counts[:0]], list[int]()
        for start in range(0, len(places), AT_ONCE):
            rows = torch.arange(start, min(start + AT_ONCE, len(places)), device=union.device)
            prompts = _prompts(text.repeated(len(rows)), places[rows])
            here = [self._drawn_at(drawn, _row(prompts, k)) for k in range(len(rows))]
            tokens, image = self._attend(prompts, torch.cat([one.mixed for _, one in here]))
            score = self.decoder.predicted_iou(tokens)[:, 0] * counts[rows]
            for k in (score >= self.least).nonzero()[:, 0].tolist():
                limit = _Window.around(limits[rows[k]], BOX_REACH, self.grid)
                logits.append(self._mask(tokens[k : k + 1], image[k : k + 1], limit, drawn, *here[k])[None])
                sure.append(int(rows[k]))
            scores.append(score[score >= self.least])
        return _apart(torch.cat(logits), torch.cat(scores), is_click[sure], union > 0)

    def _drawn(self, texts: "_Texts") -> "_Drawn":
        """What `Drawing` makes of a text alone, whose other maps are empty, and the image with it."""
        drawing, pixels = self.decoder.drawing, self.features.text_s8.expand(len(texts.tokens), -1, -1, -1)
        score_maps = self.network.text_score(pixels, texts.tokens, texts.filled)[:, None]
        scores = torch.tanh(functional.interpolate(score_maps, size=self.size, mode="bilinear") / 4)
        added = functional.conv2d(scores, drawing.conv4.weight[:, -1:], padding=1)
        s4, s8, s16 = drawing.coarsen(self.blank + added)
        unmixed = self.unmixed + s16
        return _Drawn(s4, s8, unmixed, self.decoder.mix16(unmixed))

    def _drawn_at(self, drawn: "_Drawn", prompt: PocketPrompts) -> tuple["_Window", "_Drawn"]:
        """The window that a click or a box changes, and what there is drawn; the mixed image whole."""
        window = _Window.around(prompt.boxes[0], BOX_REACH if prompt.has_box[0] else CLICK_REACH, self.grid)
        centres = [(torch.arange(a * 4, b * 4, device=prompt.boxes.device) + 0.5) * FINE for a, b in window.sides]
        drawing, weight = self.decoder.drawing, self.decoder.drawing.conv4.weight[:, :PLACE_CHANNELS]
        added = functional.conv2d(drawing.draw_places(prompt, *centres), weight, padding=1)
        s4, s8, s16 = drawing.coarsen(window.of(drawn.s4, 4) + added)
        around = window.grown(2, self.grid)
        unmixed = around.of(drawn.unmixed, 1).clone()
        window.within(around).of(unmixed, 1)[:] = window.of(self.unmixed, 1) + s16
        reached, mixed = window.grown(1, self.grid), drawn.mixed.clone()
        reached.of(mixed, 1)[:] = reached.within(around).of(self.decoder.mix16(unmixed), 1)
        return window, _Drawn(s4, s8, unmixed, mixed)

    def _attend(self, prompts: PocketPrompts, mixed: Float[Tensor, "n d gh gw"]) -> tuple[Tensor, Tensor]:
        """Tokens and image after they have seen each other."""
        tokens, image = self.decoder.attend(self.decoder.tokens(prompts), mixed.flatten(2).transpose(1, 2))
        return tokens, image.transpose(1, 2).unflatten(2, self.grid)

    def _mask(
        self,
        tokens: Float[Tensor, "1 k d"],
        image: Float[Tensor, "1 d gh gw"],
        limit: "_Window",
        drawn: "_Drawn",
        window: "_Window",
        own: "_Drawn",
    ) -> Float[Tensor, "qh qw"]:
        """Of the single mask's token, within a limit; the convolutions reach less than a cell beyond it."""
        around, levels = limit.grown(1, self.grid), list[Tensor]()
        for whole, text, changed, ratio in (
            (self.features.s8, drawn.s8, own.s8, 2),
            (self.features.s4, drawn.s4, own.s4, 4),
        ):
            level, shared = around.of(whole, ratio) + around.of(text, ratio), window.shared(around)
            there = shared.of(whole, ratio) + shared.within(window).of(changed, ratio)
            shared.within(around).of(level, ratio)[:] = there
            levels.append(level)
        found = self.decoder.upscale(tokens, around.of(image, 1), levels[0], levels[1], count=1)
        mask = tokens.new_full(self.size, ABSENT)
        limit.of(mask, 4)[:] = limit.within(around).of(found[0, 0], 4)
        return mask


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is drawn at strides 4 and 8, and the transformer's image before and after its convolution."""

    s4: Float[Tensor, "n d4 h4 w4"]
    s8: Float[Tensor, "n d8 h8 w8"]
    unmixed: Float[Tensor, "n d h16 w16"]
    mixed: Float[Tensor, "n d gh gw"]

    def __getitem__(self, row: int) -> "_Drawn":
        one = slice(row, row + 1)
        return _Drawn(self.s4[one], self.s8[one], self.unmixed[one], self.mixed[one])


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


class _Window(NamedTuple):
    """Cells of the transformer's image, ends exclusive."""

    y0: int
    y1: int
    x0: int
    x1: int

    @classmethod
    def around(cls, place: Float[Tensor, "4"], reach: int, grid: Size) -> "_Window":
        """Of a box x0 y0 x1 y1 in pixels."""
        x0, y0, x1, y1 = (float(side) / STRIDE for side in place)
        return cls(int(y0), -int(-y1 // 1), int(x0), -int(-x1 // 1)).grown(reach, grid)

    @property
    def sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.y0, self.y1), (self.x0, self.x1)

    def grown(self, by: int, grid: Size) -> "_Window":
        return _Window(self.y0 - by, self.y1 + by, self.x0 - by, self.x1 + by).shared(_Window(0, grid[0], 0, grid[1]))

    def shared(self, other: "_Window") -> "_Window":
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return _Window(y0, min(self.y1, other.y1), x0, min(self.x1, other.x1))

    def within(self, other: "_Window") -> "_Window":
        """Counted from the corner of another."""
        return _Window(self.y0 - other.y0, self.y1 - other.y0, self.x0 - other.x0, self.x1 - other.x0)

    def of(self, maps: Float[Tensor, "*n h w"], ratio: int) -> Float[Tensor, "*n a b"]:
        """A view of maps that are `ratio` times as fine."""
        return maps[..., self.y0 * ratio : self.y1 * ratio, self.x0 * ratio : self.x1 * ratio]


def find_places(union: Float[Tensor, "qh qw"]) -> tuple[Float[Tensor, "k 4"], Float[Tensor, "k 4"]]:
    """Where to look for instances, in input pixels x0 y0 x1 y1, and the box of the part of the union that each lies in.

    First the peaks on the union, the surest first, as boxes without extent; then its parts, the largest first.
    """
    above = (union > 0).cpu().numpy().astype(np.uint8)
    _, owners, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    x, y, w, h, areas = stats.T
    boxes = FINE * np.stack([x, y, x + w, y + h], axis=1).astype(np.float32)
    peaks = _peaks(union).cpu().numpy()
    owning = owners[peaks[:, 0], peaks[:, 1]]
    peaks, owning = peaks[owning > 0][:MOST_PEAKS], owning[owning > 0][:MOST_PEAKS]
    order = 1 + np.argsort(-areas[1:], kind="stable")[:MOST_PARTS]
    parts = order[areas[order] >= LEAST_PART]
    clicks = FINE * (np.tile(peaks[:, ::-1], 2).astype(np.float32) + 0.5)
    places, limits = np.concatenate([clicks, boxes[parts]]), np.concatenate([boxes[owning], boxes[parts]])
    return torch.from_numpy(places).to(union.device), torch.from_numpy(limits)


def _peaks(union: Float[Tensor, "qh qw"]) -> Int[Tensor, "k 2"]:
    """Cells (y x) deep inside the parts of the union: local maxima of its smoothed probability, surest first."""
    probs = functional.avg_pool2d(union.sigmoid()[None, None], 5, 1, 2)[0, 0]
    highest = functional.max_pool2d(probs[None, None], 9, 1, 4)[0, 0]
    found = ((probs == highest) & (probs > 0.4)).nonzero()
    order = probs[found[:, 0], found[:, 1]].argsort(descending=True)
    return found[order]


def _prompts(texts: _Texts, places: Float[Tensor, "n 4"] | None = None) -> PocketPrompts:
    """Each text alone, or at a place: in a box, or where that has no extent at a click."""
    n, none = len(texts.tokens), torch.zeros(len(texts.tokens), dtype=torch.bool, device=texts.tokens.device)
    boxes = texts.tokens.new_zeros(n, 4) if places is None else places
    has_box = boxes[:, 2] > boxes[:, 0]
    clicked = none if places is None else ~has_box
    return PocketPrompts(
        points=boxes[:, None, :2],
        labels=torch.where(clicked, 1, -1)[:, None],
        boxes=boxes,
        has_box=has_box,
        masks=boxes.new_zeros(n, 1, 1),
        has_mask=none,
        text_tokens=texts.tokens,
        text_mask=texts.filled,
    )


def _row(prompts: PocketPrompts, row: int) -> PocketPrompts:
    return PocketPrompts(**{name: value[row : row + 1] for name, value in vars(prompts).items()})


def _apart(
    logits: Float[Tensor, "k qh qw"],
    scores: Float[Tensor, "k"],
    is_click: Bool[Tensor, "k"],
    union: Bool[Tensor, "qh qw"],
) -> tuple[Float[Tensor, "j qh qw"], Float[Tensor, "j"]]:
    """Without clicks that repeat other clicks; what boxes repeat is left to who knows all names."""
    clicks, boxes = is_click.nonzero()[:, 0], (~is_click).nonzero()[:, 0]
    kept = torch.cat([clicks[_distinct(logits[clicks] > 0, scores[clicks], union)], boxes])
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
