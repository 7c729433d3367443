"""Photos in, results out: what every command shares that looks for masks in photos and saves them under `-o`.

What is checked before the first photo: that no result would overwrite an input or another result, and that the output
folder can be written. After that one bad file does not stop the others, and the files of a photo are saved whole or
not at all.
"""

import argparse
import shutil
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
    add_runtime_flag,
    add_size_flags,
    one_line,
    say,
    show_json,
    table,
)

if TYPE_CHECKING:
    from anymask.cli.progress import Progress
    from anymask.models.protocol import Model
    from anymask.types import Image, Masks, Prompt

FORMATS_HELP = (
    "coco, original, overlay, sheet, panels, masks, labelmap, png, yolo, labelme or npz (repeat; default: {})"
)
EXIT_CODES = (
    "exit code 0: done; 1: some inputs failed (named); 2: wrong use, or nothing could be done; 130: interrupted"
)
MOST_TOLD, LONGEST = 5, 40  # names that were not found, in the line of a photo, and letters of one

# Told how much of a photo is done, from 0 to 1.
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Work:
    """What a command does with each photo.

    `find` gives the masks and `describe` their rows in the JSON; `record` is what COCO files shall say of how they were
    made. `earlier`, told which file each format has, gives the masks of a photo with which nothing is left to do.
    """

    find: "Callable[[Image, Advance], Masks]"
    describe: "Callable[[Masks], list[dict[str, Any]]]"
    record: Callable[[Path], Mapping[str, Any] | None] = lambda _: None
    earlier: "Callable[[Path, Mapping[str, Path]], Masks | None]" = lambda *_: None
    categories: Sequence[str] = ()
    prompts: "Sequence[Prompt]" = ()


@dataclass(frozen=True)
class _Run:
    """A command at work: what is done so far (the rows of the JSON), and what failed, by name with the reason."""

    name: str
    args: argparse.Namespace
    formats: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def add_photo_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Inputs, model, what computes it and how, --limit and --seed; the group of all but the inputs, for more."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders of photos, or globs in quotes")
    how = parser.add_argument_group("how")
    model_help = "catalogue name (anymask models), hub id, folder or file (default: pocket)"
    how.add_argument("-m", "--model", default="pocket", help=model_help)
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_dtype_flag(how)
    add_runtime_flag(how)
    add_size_flags(how)
    how.add_argument("--limit", type=int, metavar="N", help="draw N of the photos, each folder keeping its share")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw of --limit (default: 0)")
    return how


def add_result_flags(parser: argparse.ArgumentParser, default_formats: Sequence[str]) -> argparse._ArgumentGroup:
    """--output, --format, --prefix and --resize; their group."""
    out = parser.add_argument_group("results")
    out.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="save results here; made if it is not there")
    formats_help = FORMATS_HELP.format(f"{', '.join(default_formats[:-1])} and {default_formats[-1]}")
    out.add_argument("--format", action="append", default=[], metavar="FORMAT", help=formats_help)
    out.add_argument("--prefix", default="", metavar="TEXT", help="put this before the name of every file saved")
    resize_help = "reduce original, overlay, sheet and panels to at most N pixels a side; masks keep those of the photo"
    out.add_argument("--resize", type=int, metavar="N", help=resize_help)
    return out


def load_model(args: argparse.Namespace) -> "Model":
    """The model that the flags of `add_photo_flags` name."""
    from anymask.models.load import load

    sizes = {"image_size": args.image_size, "window_size": args.window_size}
    return load(args.model, args.device, args.dtype, args.runtime, **sizes)


def run_photos(
    name: str,
    args: argparse.Namespace,
    default_formats: Sequence[str],
    prepare: Callable[[], Work],
    other_inputs: Sequence[str] = (),
) -> int:
    """Does the work that `prepare` gives, once there is something to do; the code says whether all could be done."""
    _check_result_flags(args)
    photos, failed = _find_photos(args)
    run = _Run(name, args, _checked_formats(photos, args, default_formats, other_inputs), failed=failed)
    return _do_photos(run, prepare(), photos) if photos else _finish(run)


def _check_result_flags(args: argparse.Namespace) -> None:
    from anymask.data.reducing import check_picture_side

    given = [flag for flag in ("format", "prefix", "resize") if getattr(args, flag) not in ([], "", None)]
    if args.output is None and given:
        raise ValueError(f"--{given[0]} needs -o: a folder to save results in")
    if Path(args.prefix).name != args.prefix:
        raise ValueError(f"--prefix must be a part of a file name, got {args.prefix!r}")
    check_picture_side(args.resize)


def _find_photos(args: argparse.Namespace) -> tuple[list[Path], dict[str, str]]:
    """The photos to be done, each once, and what is wrong with inputs that are not there."""
    from anymask.data.images import find_images
    from anymask.ops.sampling import stratified

    found: dict[Path, Path] = {}
    failed: dict[str, str] = {}
    for entry in args.inputs:
        try:
            for path in find_images([entry]):
                found.setdefault(path.resolve(), path)
        except OSError as error:
            failed[entry] = one_line(error)
    photos = _without_results(list(found.values()), args)
    return [photos[i] for i in stratified([str(photo.parent) for photo in photos], args.limit, args.seed)], failed


def _without_results(photos: Sequence[Path], args: argparse.Namespace) -> list[Path]:
    """Without what an earlier run drew and saved among the photos of a folder, or below them (masks)."""
    from anymask.data.exports import FORMATS, output_paths

    if args.output is None:
        return list(photos)
    others = [name for name in FORMATS if name != "png"]  # name.png may be a photo
    stems = [args.prefix + photo.stem for photo in photos]
    results = {path.resolve() for stem in stems for path in output_paths(args.output, stem, others).values()}
    kept = [
        photo
        for photo in photos
        if str(photo) in args.inputs or results.isdisjoint((photo.resolve(), photo.parent.resolve()))
    ]
    if len(kept) < len(photos):
        say(f"anymask: {len(photos) - len(kept)} pictures in {args.output} are results of an earlier run: left out")
    return kept


def _checked_formats(
    photos: Sequence[Path], args: argparse.Namespace, default_formats: Sequence[str], other_inputs: Sequence[str]
) -> tuple[str, ...]:
    """The formats to save; refuses, before any work, results that would overwrite an input or each other."""
    if args.output is None:
        return ()
    from anymask.data.exports import output_paths

    formats = tuple(dict.fromkeys(args.format or default_formats))
    read = [path.resolve() for path in [*photos, *map(Path, other_inputs)]]
    inputs = {one for path in read for one in (path, *path.parents)}  # a folder of masks is replaced as a whole
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


def _do_photos(run: _Run, work: Work, photos: Sequence[Path]) -> int:
    from anymask.cli.progress import Progress

    with Progress("image") as progress:
        try:
            for i, photo in enumerate(photos):
                _do_one(run, work, photo, progress, _advance(progress, i, len(photos), photo.name))
        except KeyboardInterrupt:
            kept = f"their results in {run.args.output} are whole" if run.args.output else "nothing was saved (no -o)"
            say(f"anymask {run.name}: interrupted: {len(run.rows)} of {len(photos)} images are done, {kept}")
            return INTERRUPTED
    return _finish(run)


def _advance(progress: "Progress", i: int, total: int, name: str) -> Advance:
    return lambda part: progress.show(i + part, total, name)


def _do_one(run: _Run, work: Work, photo: Path, progress: "Progress", advance: Advance) -> None:
    """Adds a row, or a failure, for one photo."""
    from anymask.data.images import read_image

    advance(0.0)
    try:
        masks, results = work.earlier(photo, _paths(run, photo)), "done earlier"
        if masks is None:
            image = read_image(photo)
            masks = work.find(image, advance)
            results = ", ".join(str(path) for path in _save(run, work, masks, image, photo))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        run.failed[str(photo)] = one_line(error)
        return
    made_by = {"made_by": dict(masks.made_by)} if masks.made_by else {}
    run.rows.append({"file": str(photo), "size": list(masks.size), "masks": work.describe(masks), **made_by})
    if not run.args.json:
        progress.print(_described(photo, masks, results))
        for line in _losses(run, masks):
            progress.say(f"anymask {run.name}: {photo}: {line}")


def _paths(run: _Run, photo: Path) -> dict[str, Path]:
    """The file of each format; none where nothing is saved."""
    from anymask.data.exports import output_paths

    return output_paths(run.args.output, run.args.prefix + photo.stem, run.formats) if run.formats else {}


def _save(run: _Run, work: Work, masks: "Masks", image: "Image", photo: Path) -> list[Path]:
    """All files of one photo; where one cannot be written, none of the new ones stays."""
    from anymask.data.exports import save

    if not run.formats:
        return []
    new = [path for path in _paths(run, photo).values() if not path.exists()]
    try:
        return save(
            masks,
            image,
            run.args.output,
            run.args.prefix + photo.stem,
            run.formats,
            file_name=photo.name,
            categories=work.categories,
            prompts=work.prompts,
            settings=work.record(photo),
            picture_side=run.args.resize,
        )
    except BaseException:
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _finish(run: _Run) -> int:
    """Shows the document, names the failures, and says by the exit code how it went."""
    rows, failed = run.rows, run.failed
    if run.args.json and (rows or not failed):
        show_json(rows)
    elif not rows and not failed:
        print("no photos found: nothing to segment")
    for entry, problem in failed.items():
        say(f"anymask {run.name}: {problem if entry in problem else f'{entry}: {problem}'}")
    if failed and len(rows) + len(failed) > 1:
        say(f"anymask {run.name}: {len(failed)} of {len(rows) + len(failed)} inputs failed: {', '.join(failed)}")
    return DONE if not failed else SOME_FAILED if rows else WRONG_USE


def _losses(run: _Run, masks: "Masks") -> list[str]:
    """What the formats asked for, and the sheet, cannot hold of this result; logits interest nobody here."""
    from anymask.data.exports import lost_by

    told = [name for name in run.formats if name in run.args.format or name == "sheet"]
    lost = {name: [words for words in lost_by(masks, name) if "logits" not in words] for name in told}
    return [f"{name} does not keep {', '.join(words)}" for name, words in lost.items() if words]


def _described(photo: Path, masks: "Masks", results: str) -> str:
    """What was found in one photo: a line, and where there are no results in files a table."""
    h, w = masks.size
    named = ", ".join(f"{label} {masks.labels.count(label)}" for label in dict.fromkeys(masks.labels) if label)
    count = f"{len(masks)} mask{'' if len(masks) == 1 else 's'}" if len(masks) else "nothing found"
    line = f"{photo}: {w} x {h}, {count}{f' ({named})' if named else ''}{_missing(masks)}"
    line += f" -> {results}" if results else ""
    return "\n".join(
        [line, *(f"  {row}" for row in _rows(masks).splitlines())] if len(masks) and not results else [line]
    )


def _missing(masks: "Masks") -> str:
    """Names that were not found, and why."""
    missing = masks.made_by.get("missing", {}).items()
    told = [f"{name if len(name) <= LONGEST else f'{name[: LONGEST - 3]}...'} {words}" for name, words in missing]
    told = told[:MOST_TOLD] + [f"{len(told) - MOST_TOLD} more"] * (len(told) > MOST_TOLD)
    return f"; not found: {', '.join(told)}" if told else ""


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
