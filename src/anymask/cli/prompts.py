"""The grammar of prompts on a command line, the same in every command that takes prompts.

Without `--object`, all points and the mask prompt one object and each box is an object of its own, in the order in
which they are first given. With `--object N` every point, box and mask that follows belongs to object N. Texts name
things and belong to no object.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anymask.data.concepts import read_concept
from anymask.data.images import read_image, read_mask
from anymask.types import Exemplar, Masks, Prompt

NOTES = """\
how prompts combine:
  All --point and the --mask together are one object; each --box is an object of its own, also beside points.
  --object N begins the prompts of object N: to correct a box by points, put them together in one object:
    --object 1 --box 40,30,600,410 --point 300,200 --point 50,50,0 --object 2 --point 700,80
  Each --text is a name, and gives all its instances; with --concept polyp.safetensors it may be "a <polyp> on the
  left". Coordinates are pixels of the original image, x to the right.
  --exemplar and --not-exemplar show what is meant and what is not, in the image or in another PHOTO, by a box or by
  the size of a mask: beside one --text, or alone. They need a model that knows exemplars (sam3)."""

_Part = tuple[str, str]
# [PHOTO:]SHAPE, split at the last colon that is not of a Windows drive (C:\\, C:/).
_EXEMPLAR = re.compile(r"(?:(?P<photo>(?![A-Za-z]:[\\/][^:]*$).+?):)?(?P<shape>(?:[A-Za-z]:[\\/])?[^:]*)")
_NUMBERS = re.compile(r"[-+.,\d\seE]+")


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """--point, --box, --mask and --object, kept in their order, --text and --exemplar, and what they are not."""
    group = parser.add_argument_group("prompts")
    ordered: dict[str, Any] = {"action": _Ordered, "dest": "parts", "default": ()}
    group.add_argument(
        "--point", **ordered, metavar="X,Y[,LABEL]", help="a click; label 1 (default) on the object, 0 beside it"
    )
    group.add_argument("--box", **ordered, metavar="X0,Y0,X1,Y1", help="a box around an object, end exclusive")
    group.add_argument(
        "--mask", **ordered, metavar="FILE", help="a rough mask, of the size of the image: what is not black"
    )
    group.add_argument(
        "--object", **ordered, metavar="N", help="the prompts that follow are of object N; its masks get id N"
    )
    group.add_argument(
        "--text", action="append", default=[], metavar="NAME", help="all instances of this name (repeat)"
    )
    group.add_argument(
        "--not-text", action="append", default=[], metavar="NAME", help="what not to take for it (repeat)"
    )
    group.add_argument(
        "--concept",
        action="append",
        default=[],
        metavar="FILE",
        help="all instances of a learned concept, or what <its name> means in a --text (repeat)",
    )
    shown: dict[str, Any] = {"action": "append", "default": [], "metavar": "[PHOTO:]X0,Y0,X1,Y1|MASK"}
    group.add_argument("--exemplar", **shown, help="everything that looks like this one (repeat)")
    group.add_argument("--not-exemplar", **shown, help="but not like that one (repeat)")


def read_objects(parts: Sequence[_Part]) -> dict[int, Prompt]:
    """One Prompt for each object, by its number, from (flag, value) in the order of the command line."""
    if not any(flag == "object" for flag, _ in parts):
        return _implicit_objects(parts)
    objects: dict[int, Prompt] = {}
    number = 0
    for flag, value in parts:
        if flag == "object":
            number = _object_number(value)
            objects.setdefault(number, Prompt())
        elif not number:
            raise ValueError(
                f"with --object, every prompt must follow the --object it is of, but --{flag} {value} comes first"
            )
        else:
            objects[number] = _added(objects[number], flag, value, f"object {number} has more than one --{flag}")
    empty = [number for number, prompt in objects.items() if not prompt.is_spatial]
    if empty:
        raise ValueError(f"object {empty[0]} has no prompt: give a --point, --box or --mask after --object {empty[0]}")
    return objects


def read_names(
    names: Sequence[str],
    negative_names: Sequence[str],
    exemplars: Sequence[str] = (),
    negative_exemplars: Sequence[str] = (),
    concepts: Sequence[str] = (),
) -> tuple[Prompt, ...]:
    """One Prompt for each name, and for each concept that no name speaks of as <its name>.

    The exemplars are of the one name, or a Prompt of their own.
    """
    from anymask.asking import distinct_names

    names = distinct_names(names)
    if negative_names and not (names or concepts):
        raise ValueError("--not-text needs a --text or a --concept: it says what not to take for it")
    if concepts and (exemplars or negative_exemplars):
        raise ValueError("--exemplar refines one --text, or stands alone: leave out --concept")
    if negative_exemplars and not (names or exemplars):
        raise ValueError("--not-exemplar needs a --text or an --exemplar: it says what not to take for it")
    if len(names) > 1 and (exemplars or negative_exemplars):
        raise ValueError(f"--exemplar refines one --text, or stands alone: got {len(names)} of --text")
    shown = tuple(_exemplar("--exemplar", value, True) for value in exemplars)
    shown += tuple(_exemplar("--not-exemplar", value, False) for value in negative_exemplars)
    if shown:
        return ((Prompt.text(names[0], negative_names) if names else Prompt()) + Prompt(exemplars=shown),)
    against = Prompt(negative_names=tuple(negative_names))
    learned = [read_concept(file) for file in concepts]
    if refused := [name for name in negative_names if any(f"<{one.name}>" in name for one in learned)]:
        raise ValueError(f"--not-text takes words alone, got {refused[0]!r}: a concept can be asked for, not refused")
    amid = {name: [one for one in learned if f"<{one.name}>" in name] for name in names}
    alone = [one for one in learned if not any(one in within for within in amid.values())]
    said = tuple(Prompt.text(name, negative_names, within) for name, within in amid.items())
    return said + tuple(Prompt.concept(one) + against for one in alone)


def split_exemplar(value: str) -> tuple[str, str]:
    """Photo, or nothing where it is the image itself, and box or mask."""
    found = _EXEMPLAR.fullmatch(value)
    if found is None or not found["shape"].strip():
        raise ValueError(f"an exemplar must be x0,y0,x1,y1 or a mask, with PHOTO: before it for another, got {value!r}")
    return found["photo"] or "", found["shape"]


def exemplar_files(values: Sequence[str]) -> list[str]:
    """The photos and masks that --exemplar and --not-exemplar name."""
    named = [part for value in values for part in split_exemplar(value)]
    return [part for part in named if part and not _NUMBERS.fullmatch(part)]


def numbered(masks: Masks, numbers: Sequence[int]) -> Masks:
    """A result whose ids 1, 2, ... go by the order of the objects, with the objects' own numbers; names follow."""
    n = len(numbers)
    if tuple(numbers) == tuple(range(1, n + 1)):
        return masks
    of_object = np.asarray(numbers, np.int64)
    ids = np.where(masks.ids <= n, of_object[np.minimum(masks.ids, n) - 1], masks.ids - n + of_object.max())
    return dataclasses.replace(masks, ids=ids)


def _implicit_objects(parts: Sequence[_Part]) -> dict[int, Prompt]:
    """Points and mask are the object "clicked", each box one of its own."""
    objects: dict[object, Prompt] = {}
    for i, (flag, value) in enumerate(parts):
        key: object = i if flag == "box" else "clicked"
        problem = f"without --object there can be one --{flag} only: begin each object with --object N"
        objects[key] = _added(objects.get(key, Prompt()), flag, value, problem)
    clicked = objects.get("clicked")
    if clicked is not None and len(objects) > 1 and clicked.mask_input is None and not clicked.point_labels.any():
        raise ValueError(
            "points of label 0 alone are no object: to correct a box write --object 1 --box X0,Y0,X1,Y1 --point X,Y,0"
        )
    return dict(enumerate(objects.values(), start=1))


def _added(prompt: Prompt, flag: str, value: str, problem: str) -> Prompt:
    if (flag == "box" and prompt.box_coords is not None) or (flag == "mask" and prompt.mask_input is not None):
        raise ValueError(problem)
    return prompt + _READERS[flag](value)


def _point(value: str) -> Prompt:
    numbers = _floats("--point", value, "x,y or x,y,label", (2, 3))
    label = numbers[2] if len(numbers) == 3 else 1.0
    if label not in (0, 1):
        raise ValueError(f"the label of --point must be 1 (object) or 0 (background), got {value!r}")
    return Prompt.point(numbers[0], numbers[1], int(label))


def _box(value: str) -> Prompt:
    x0, y0, x1, y1 = _floats("--box", value, "x0,y0,x1,y1", (4,))
    return Prompt.box(x0, y0, x1, y1)


def _mask(value: str) -> Prompt:
    return Prompt.mask(read_mask(value))


def _exemplar(flag: str, value: str, positive: bool) -> Exemplar:
    photo, shape = split_exemplar(value)
    image = read_image(photo) if photo else None
    if not _NUMBERS.fullmatch(shape):
        return Exemplar(image, mask=read_mask(shape), positive=positive)
    x0, y0, x1, y1 = _floats(flag, shape, "x0,y0,x1,y1", (4,))
    return Exemplar(image, box=Prompt.box(x0, y0, x1, y1).box_coords, positive=positive)


def _object_number(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) < 2**31:
        raise ValueError(f"--object must be a whole number from 1 on, got {value!r}")
    return int(value)


def _floats(flag: str, value: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise ValueError(f"{flag} must be {form} in pixels, got {value!r}")
    return numbers


_READERS: Mapping[str, Callable[[str], Prompt]] = {"point": _point, "box": _box, "mask": _mask}


class _Ordered(argparse.Action):
    """Appends (flag, value) to one list, so that the order of different flags is known."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        held = getattr(namespace, self.dest)
        setattr(namespace, self.dest, (*held, (self.option_strings[0].removeprefix("--"), str(values))))
