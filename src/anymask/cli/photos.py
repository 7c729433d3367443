"""Photos in, results out: what every command shares that looks for masks in photos and saves them under `-o`.

What is checked before the first photo: that no result would overwrite an input or another result, and that the output
folder can be written. After that one bad file does not stop the others, and the files of a photo are saved whole or
not at all.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    WRONG_USE,
    add_dtype_flag,
    one_line,
    say,
    show_json,
    table,
)

if TYPE_CHECKING:
    from anymask.cli.progress import Progress
    from anymask.types import Image, Masks, Prompt

FORMATS_HELP = "coco, overlay, sheet, labelmap, png, yolo, labelme or npz (repeat; default: {})"
EXIT_CODES = (
    "exit code 0: done; 1: some inputs failed (named); 2: wrong use, or nothing could be done; 130: interrupted"
)

# Told how much of a photo is done, from 0 to 1.
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Work:
    """What a command does with each photo; `name` is the command's.

    `find` gives the masks, `describe` their rows in the JSON, `earlier` those of an earlier run, of which nothing is
    to be done anew. `settings` are recorded in COCO files.
    """

    name: str
    args: argparse.Namespace
    formats: tuple[str, ...]
    find: "Callable[[Image, Advance], Masks]"
    describe: "Callable[[Masks], list[dict[str, Any]]]"
    earlier: "Callable[[Path], Masks | None]" = lambda _: None
    categories: Sequence[str] = ()
    prompts: "Sequence[Prompt]" = ()
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Tally:
    """What is done (the rows of the JSON) and what failed (by name, with the reason)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """The photos."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders of photos, or globs in quotes")


def add_model_flags(group: argparse._ActionsContainer) -> None:
    """--model, --device and --dtype."""
    model_help = "catalogue name (anymask models), hub id, folder or file (default: pocket)"
    group.add_argument("-m", "--model", default="pocket", help=model_help)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_dtype_flag(group)


def add_draw_flags(group: argparse._ActionsContainer) -> None:
    """--limit and --seed."""
    group.add_argument("--limit", type=int, metavar="N", help="draw N of the photos, each folder keeping its share")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw of --limit (default: 0)")


def add_result_flags(parser: argparse.ArgumentParser, default_formats: Sequence[str]) -> argparse._ArgumentGroup:
    """--output, --format and --prefix; the group, for what else there is to say of results."""
    out = parser.add_argument_group("results")
    out.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="save results here; made if it is not there")
    formats_help = FORMATS_HELP.format(f"{', '.join(default_formats[:-1])} and {default_formats[-1]}")
    out.add_argument("--format", action="append", default=[], metavar="FORMAT", help=formats_help)
    out.add_argument("--prefix", default="", metavar="TEXT", help="put this before the name of every file saved")
    return out


def check_result_flags(args: argparse.Namespace) -> None:
    """Raises ValueError for flags of results that make no sense."""
    if args.output is None and (args.format or args.prefix):
        raise ValueError(f"--{'format' if args.format else 'prefix'} needs -o: a folder to save results in")
    if Path(args.prefix).name != args.prefix:
        raise ValueError(f"--prefix must be a part of a file name, got {args.prefix!r}")


def find_photos(args: argparse.Namespace) -> tuple[list[Path], Tally]:
    """The photos to be done, each once, and the inputs that are not there, as failures."""
    from anymask.data.images import find_images
    from anymask.ops.sampling import stratified

    found: dict[Path, Path] = {}
    tally = Tally()
    for entry in args.inputs:
        try:
            for path in find_images([entry]):
                found.setdefault(path.resolve(), path)
        except OSError as error:
            tally.failed[entry] = one_line(error)
    photos = list(found.values())
    return [photos[i] for i in stratified([str(photo.parent) for photo in photos], args.limit, args.seed)], tally


def checked_formats(
    photos: Sequence[Path],
    args: argparse.Namespace,
    default_formats: Sequence[str],
    other_inputs: Sequence[str] = (),
) -> tuple[str, ...]:
    """The formats to save; refuses, before any work, results that would overwrite an input or each other."""
    if args.output is None:
        return ()
    from anymask.data.exports import output_paths

    formats = tuple(dict.fromkeys(args.format or default_formats))
    inputs = {path.resolve() for path in [*photos, *map(Path, other_inputs)]}
    made_by: dict[Path, Path] = {}
    for photo in photos:
        for path in output_paths(args.output, args.prefix + photo.stem, formats).values():
            other = made_by.setdefault(path, photo)
            if other != photo:
                raise ValueError(
                    f"{other} and {photo} would both be saved as {path}: use two runs, with another -o or --prefix"
                )
            if path.resolve() in inputs:
                raise ValueError(f"{path} would overwrite an input: give another -o, or a --prefix")
    _check_writable(args.output)
    return formats


def do_photos(work: Work, photos: Sequence[Path], tally: Tally) -> int:
    """Does every photo; the code says whether all, some or none could be done."""
    from anymask.cli.progress import Progress

    with Progress("image") as progress:
        try:
            for i, photo in enumerate(photos):
                _do_one(work, photo, tally, progress, _advance(progress, i, len(photos), photo.name))
        except KeyboardInterrupt:
            kept = f"their results in {work.args.output} are whole" if work.args.output else "nothing was saved (no -o)"
            say(f"anymask {work.name}: interrupted: {len(tally.rows)} of {len(photos)} images are done, {kept}")
            return INTERRUPTED
    return finish(work.name, work.args, tally)


def finish(name: str, args: argparse.Namespace, tally: Tally) -> int:
    """Shows the document, names the failures, and says by the exit code how it went."""
    rows, failed = tally.rows, tally.failed
    if args.json and (rows or not failed):
        show_json(rows)
    elif not rows and not failed:
        print("no photos found: nothing to segment")
    for entry, problem in failed.items():
        say(f"anymask {name}: {problem if entry in problem else f'{entry}: {problem}'}")
    if failed and len(rows) + len(failed) > 1:
        say(f"anymask {name}: {len(failed)} of {len(rows) + len(failed)} inputs failed: {', '.join(failed)}")
    return DONE if not failed else SOME_FAILED if rows else WRONG_USE


def _advance(progress: "Progress", i: int, total: int, name: str) -> Advance:
    return lambda part: progress.show(i + part, total, name)


def _do_one(work: Work, photo: Path, tally: Tally, progress: "Progress", advance: Advance) -> None:
    """Adds a row, or a failure, for one photo."""
    from anymask.data.images import read_image

    saved: list[Path] = []
    advance(0.0)
    try:
        masks = work.earlier(photo)
        done_earlier = masks is not None
        if masks is None:
            image = read_image(photo)
            masks = work.find(image, advance)
            saved = _save(work, masks, image, photo) if work.formats else []
    except (ValueError, OSError, MemoryError) as error:
        tally.failed[str(photo)] = one_line(error)
        return
    tally.rows.append({"file": str(photo), "size": list(masks.size), "masks": work.describe(masks)})
    if not work.args.json:
        results = "done earlier" if done_earlier else ", ".join(str(path) for path in saved)
        progress.print(_described(photo, masks, results, detailed=not work.formats))
        for line in _losses(work, masks):
            progress.say(f"anymask {work.name}: {photo}: {line}")


def _save(work: Work, masks: "Masks", image: "Image", photo: Path) -> list[Path]:
    """All files of one photo; where one cannot be written, none of the new ones stays."""
    from anymask.data.exports import output_paths, save

    folder, stem = work.args.output, work.args.prefix + photo.stem
    new = [path for path in output_paths(folder, stem, work.formats).values() if not path.exists()]
    try:
        return save(
            masks,
            image,
            folder,
            stem,
            work.formats,
            file_name=photo.name,
            categories=work.categories,
            prompts=work.prompts,
            settings=work.settings,
        )
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _check_writable(folder: Path) -> None:
    """Raises OSError, with the folder in its message, before a model is loaded for nothing."""
    if folder.is_file():
        raise NotADirectoryError(f"-o must be a folder, got the file {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="."):
            return
    except OSError as error:
        raise OSError(error.errno, f"cannot write to {folder}: {error.strerror or error}") from error


def _losses(work: Work, masks: "Masks") -> list[str]:
    """What the formats asked for, and the sheet, cannot hold of this result; logits interest nobody here."""
    from anymask.data.exports import lost_by

    told = [name for name in work.formats if name in work.args.format or name == "sheet"]
    lost = {name: [words for words in lost_by(masks, name) if "logits" not in words] for name in told}
    return [f"{name} does not keep {', '.join(words)}" for name, words in lost.items() if words]


def _described(photo: Path, masks: "Masks", results: str, detailed: bool) -> str:
    """What was found in one photo: a line, and without -o a table."""
    h, w = masks.size
    named = ", ".join(f"{label} {masks.labels.count(label)}" for label in dict.fromkeys(masks.labels) if label)
    count = f"{len(masks)} mask{'' if len(masks) == 1 else 's'}" if len(masks) else "nothing found"
    line = f"{photo}: {w} x {h}, {count}{f' ({named})' if named else ''}{f' -> {results}' if results else ''}"
    return "\n".join([line, *(f"  {row}" for row in _rows(masks).splitlines())] if detailed and len(masks) else [line])


def _rows(masks: "Masks") -> str:
    columns = zip(masks.ids, masks.labels, masks.scores, masks.areas, masks.boxes, strict=True)
    return table(
        [
            {
                "id": int(number),
                "name": label or "-",
                "score": float(score),
                "pixels": int(area),
                "box x0,y0,x1,y1": ",".join(f"{side:g}" for side in box),
            }
            for number, label, score, area, box in columns
        ]
    )
