"""What is asked for: all that a user says as prompts, and whether it makes sense, before anything is computed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anymask.grounding.pipeline import Grounding
from anymask.models.capabilities import knows_no_text
from anymask.models.protocol import Model
from anymask.prompting import check_prompt
from anymask.tiling import settled_overlap
from anymask.types import Box, Exemplar, Prompt, Size


def collect_prompts(
    prompts: Prompt | Sequence[Prompt] | None,
    points: Any = None,
    point_labels: Sequence[int] | None = None,
    boxes: Any = None,
    mask: np.ndarray | None = None,
    text: str | Sequence[str] | None = None,
    not_text: str | Sequence[str] | None = None,
    exemplars: Sequence[Exemplar] = (),
) -> list[Prompt]:
    """Everything said, as one Prompt per object or name; exemplars refine the one name, or stand alone."""
    wanted = [prompts] if isinstance(prompts, Prompt) else list(prompts or ())
    one = Prompt() if points is None else Prompt.points(points, point_labels)
    if mask is not None:
        one = one + Prompt.mask(mask)
    if one.is_spatial:
        wanted.append(one)
    if boxes is not None:
        wanted += [Prompt.box(*box) for box in np.asarray(boxes, np.float32).reshape(-1, 4).tolist()]
    against = [not_text] if isinstance(not_text, str) else list(not_text or ())
    names = distinct_names([text] if isinstance(text, str) else list(text or ()))
    if against and not names:
        raise ValueError("a negative text needs a text: it says what not to take for it")
    named = [Prompt.text(name, against) for name in names]
    wanted += with_exemplars(named, exemplars)
    if not wanted:
        raise ValueError("nothing to segment: give a point, a box, a mask, a text or an exemplar")
    return wanted


def distinct_names(names: Sequence[str]) -> list[str]:
    """Each name once: those that differ in case or blanks alone are one, as it is spelt first."""
    first = dict[str, str]()
    for name in names:
        first.setdefault(" ".join(name.casefold().split()), name)
    return list(first.values())


def as_exemplars(
    shown: Sequence[Exemplar | Sequence[float]] | None, not_shown: Sequence[Exemplar | Sequence[float]] | None
) -> tuple[Exemplar, ...]:
    """Boxes x0 y0 x1 y1 of the image itself, or exemplars: those of what is meant, then those of what is not."""
    return tuple(
        replace(one, positive=positive) if isinstance(one, Exemplar) else Exemplar(box=as_box(one), positive=positive)
        for group, positive in ((shown, True), (not_shown, False))
        for one in group or ()
    )


def with_exemplars(named: Sequence[Prompt], exemplars: Sequence[Exemplar]) -> list[Prompt]:
    """The prompt of the one name with the exemplars, or of the exemplars alone; other names as they are."""
    if not exemplars:
        return list(named)
    if len(named) > 1:
        raise ValueError(f"exemplars refine one text or stand alone: got {len(named)} texts; ask for one at a time")
    if not named and not any(one.positive for one in exemplars):
        raise ValueError("a negative exemplar needs a text or a positive exemplar: it says what not to take for it")
    return [(named[0] if named else Prompt()) + Prompt(exemplars=tuple(exemplars))]


def check_wanted(prompts: Sequence[Prompt], *, multimask: bool = False, zoom: bool = False) -> None:
    """Raises ValueError where prompts gainsay each other, or `multimask` or `zoom` would have no effect."""
    if multimask and zoom:
        raise ValueError("zoom gives one mask an object, multimask several: ask for one of them")
    if multimask and not any(prompt.is_spatial for prompt in prompts):
        raise ValueError("multimask is for points, boxes and masks: a text has none of them")
    wanted = {prompt.title.casefold().strip() for prompt in prompts} - {""}
    for name in (name for prompt in prompts for name in prompt.negative_names):
        if name.casefold().strip() in wanted:
            raise ValueError(
                f"{name!r} is asked for and refused at once: take it out of the texts or the negative ones"
            )


def check_zoom(model: Model, prompts: Sequence[Prompt], grounding: Grounding | None, *, zoom: bool) -> None:
    """Raises ValueError where a closer look would have no effect: on nothing but names that the model finds itself."""
    if zoom and grounding is None and not any(prompt.is_spatial for prompt in prompts):
        raise ValueError(f"{model.name} finds texts itself, at one size: zoom is for points, boxes, masks, a detector")


def check_tiles(prompts: Sequence[Prompt], tile: int | None, overlap: int | None, *, zoom: bool = False) -> None:
    """Raises ValueError for tiles that make no sense, or would not help the prompts."""
    settled_overlap(tile, overlap)
    if tile is None:
        return
    if zoom:
        raise ValueError("tile and zoom both look closer: ask for one of them")
    if any(prompt.exemplars for prompt in prompts):
        raise ValueError("tile is for texts and boxes: an exemplar would be seen in its own tile alone")
    if any(prompt.mask_input is not None or (prompt.is_spatial and prompt.box_coords is None) for prompt in prompts):
        raise ValueError("tile is for texts and boxes, which say how large a thing is: for a point or a mask use zoom")


def check_understood(model: Model, prompts: Sequence[Prompt], grounding: Grounding | None = None) -> None:
    """Raises ValueError if the model knows nothing of a kind of prompt, whatever the image."""
    can = model.capabilities
    if grounding is not None:
        _check_grounded(model, prompts)
        prompts = [prompt for prompt in prompts if prompt.is_spatial]
    if any(prompt.exemplars for prompt in prompts) and not can.exemplars:
        raise ValueError(f"{model.name} knows no exemplars: use sam3 (--model facebook/sam3)")
    if any(prompt.is_semantic for prompt in prompts) and not can.text:
        raise knows_no_text(model.name)
    if any(prompt.is_spatial for prompt in prompts) and not can.points:
        raise ValueError(f"{model.name} knows names and exemplars alone: use facebook/sam3 for points, boxes and masks")


def check_placed(prompt: Prompt, size: Size) -> None:
    """Raises ValueError for what lies outside its image."""
    check_prompt(prompt, size)
    for one in prompt.exemplars:
        _check_exemplar(one, size)


def _check_exemplar(exemplar: Exemplar, size: Size) -> None:
    """Raises ValueError for one that cannot lie in its image, which is of `size` unless it is another."""
    h, w = size if exemplar.image is None else exemplar.image.size
    where = f"{'the image' if exemplar.image is None else exemplar.image.name} of {w} x {h} pixels"
    if exemplar.mask is not None and exemplar.mask.shape != (h, w):
        raise ValueError(
            f"the mask of an exemplar must be bool {(h, w)} (h, w) like {where}, got {exemplar.mask.shape}"
        )
    if exemplar.mask is not None and not exemplar.mask.any():
        raise ValueError("the mask of an exemplar must mark something, got an empty mask")
    if exemplar.box is not None:
        x0, y0, x1, y1 = exemplar.box
        if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
            raise ValueError(f"an exemplar box must lie in {where}, got {x0:g},{y0:g},{x1:g},{y1:g}")


def _check_grounded(model: Model, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for what a detector cannot find, or the model not make masks of."""
    if not model.capabilities.boxes:
        raise ValueError(f"{model.name} takes no boxes, which is what a detector gives: leave the detector out")
    if any(prompt.exemplars for prompt in prompts):
        raise ValueError("a detector knows names, no exemplars: leave the detector out, and use facebook/sam3")
    for prompt in prompts:
        if prompt.embedded and not prompt.is_spatial:
            concept = prompt.embedded[0]
            raise ValueError(
                f"the concept {concept.name!r} holds vectors that {concept.base_model} reads: a detector knows words"
                " alone"
            )


def as_box(corners: Sequence[float]) -> Box:
    """Four numbers as a box. Raises ValueError for another count of them."""
    if len(corners) != 4:
        raise ValueError(f"an exemplar must be a box x0 y0 x1 y1 or an Exemplar, got {list(corners)}")
    x0, y0, x1, y1 = (float(side) for side in corners)
    return x0, y0, x1, y1
