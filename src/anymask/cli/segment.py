"""`anymask segment`: photos and prompts to masks, shown as a table or JSON, saved under `-o`.

What is checked before the first photo: prompts, that no result would overwrite an input or another result, and that the
output folder can be written. After that one bad file does not stop the others.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    WRONG_USE,
    Command,
    add_dtype_flag,
    one_line,
    say,
    show_json,
    table,
)
from anymask.cli.prompts import NOTES, add_prompt_flags, exemplar_files, numbered, read_names, read_objects

if TYPE_CHECKING:
    from anymask.cli.progress import Progress
    from anymask.models.protocol import Model
    from anymask.types import Image, Masks, Prompt

FORMATS_HELP = "coco, overlay, labelmap, png, yolo, labelme or npz (repeat; default: coco and overlay)"


@dataclass(frozen=True)
class _Job:
    """The run that the flags describe, ready for the first photo."""

    args: argparse.Namespace
    model: "Model"
    objects: "dict[int, Prompt]"
    names: "tuple[Prompt, ...]"
    formats: tuple[str, ...]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Inputs, prompts, what to compute, and where results go."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders of photos, or globs in quotes")
    add_prompt_flags(parser)
    how = parser.add_argument_group("how")
    model_help = "catalogue name (anymask models), hub id, folder or file (default: pocket)"
    how.add_argument("-m", "--model", default="pocket", help=model_help)
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_dtype_flag(how)
    how.add_argument("--multimask", action="store_true", help="three masks an object instead of the best one")
    how.add_argument("--zoom", action="store_true", help="look again, closer, around each object: for small ones")
    how.add_argument("--semantic", action="store_true", help="for a text one mask of everything, not one an instance")
    tile_help = "look at a big image in squares of this side, one after another: for texts and boxes"
    how.add_argument("--tile", type=int, metavar="N", help=tile_help)
    how.add_argument(
        "--overlap", type=int, metavar="N", help="by how much tiles overlap (default: an eighth of --tile)"
    )
    how.add_argument("--limit", type=int, metavar="N", help="draw N of the photos, each folder keeping its share")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw of --limit (default: 0)")
    out = parser.add_argument_group("results")
    out.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="save results here; made if it is not there")
    out.add_argument("--format", action="append", default=[], metavar="FORMAT", help=FORMATS_HELP)
    out.add_argument("--prefix", default="", metavar="TEXT", help="put this before the name of every file saved")


def run(args: argparse.Namespace) -> int:
    """Segments every input; the code says whether all, some or none could be done."""
    from anymask.cli.progress import Progress

    _check_flags(args)
    objects = read_objects(args.parts)
    names = read_names(args.text, args.not_text, args.exemplar, args.not_exemplar)
    found, failed = _find(args.inputs)
    photos = _limited(found, args)
    formats = _checked_formats(photos, args)
    if not photos:
        return _finish(args, [], failed)
    job = _Job(args, _load(args, [*objects.values(), *names]), objects, names, formats)
    rows: list[dict[str, Any]] = []
    with Progress("image") as progress:
        try:
            for i, photo in enumerate(photos):
                progress.show(i, len(photos), photo.name)
                _segment_one(job, photo, rows, failed, progress)
        except KeyboardInterrupt:
            kept = f"their results in {args.output} are whole" if args.output else "nothing was saved (no -o)"
            say(f"anymask segment: interrupted: {len(rows)} of {len(photos)} images are done, {kept}")
            return INTERRUPTED
    return _finish(args, rows, failed)


def _check_flags(args: argparse.Namespace) -> None:
    if not (args.parts or args.text or args.not_text or args.exemplar or args.not_exemplar):
        raise ValueError(
            "nothing to segment: give a --point, --box, --mask, --text or --exemplar (see anymask segment --help)"
        )
    if args.output is None and (args.format or args.prefix):
        raise ValueError(f"--{'format' if args.format else 'prefix'} needs -o: a folder to save results in")
    if Path(args.prefix).name != args.prefix:
        raise ValueError(f"--prefix must be a part of a file name, got {args.prefix!r}")


def _find(inputs: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The photos, each once, and what is wrong with inputs that are not there."""
    from anymask.data.images import find_images

    found: dict[Path, Path] = {}
    failed: dict[str, str] = {}
    for entry in inputs:
        try:
            for path in find_images([entry]):
                found.setdefault(path.resolve(), path)
        except OSError as error:
            failed[entry] = one_line(error)
    return list(found.values()), failed


def _limited(photos: list[Path], args: argparse.Namespace) -> list[Path]:
    from anymask.ops.sampling import stratified

    return [photos[i] for i in stratified([str(photo.parent) for photo in photos], args.limit, args.seed)]


def _checked_formats(photos: Sequence[Path], args: argparse.Namespace) -> tuple[str, ...]:
    """The formats to save; refuses, before any work, results that would overwrite an input or each other."""
    if args.output is None:
        return ()
    from anymask.data.exports import DEFAULT_FORMATS, output_paths

    formats = tuple(dict.fromkeys(args.format)) or DEFAULT_FORMATS
    shown = [*(value for flag, value in args.parts if flag == "mask")]
    shown += exemplar_files([*args.exemplar, *args.not_exemplar])
    inputs = {path.resolve() for path in [*photos, *map(Path, shown)]}
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


def _load(args: argparse.Namespace, prompts: "Sequence[Prompt]") -> "Model":
    """The model, if it understands the prompts."""
    from anymask.models.load import load
    from anymask.segmentation import check_tiles, check_understood, check_wanted

    check_wanted([prompt for prompt in prompts if prompt.is_spatial], multimask=args.multimask, zoom=args.zoom)
    check_tiles(prompts, args.tile, args.overlap, zoom=args.zoom)
    model = load(args.model, args.device, args.dtype)
    check_understood(model, prompts)
    return model


def _segment_one(
    job: _Job, photo: Path, rows: list[dict[str, Any]], failed: dict[str, str], progress: "Progress"
) -> None:
    """Adds a row, or a failure, for one photo."""
    from anymask.data.images import read_image

    try:
        image = read_image(photo)
        masks = _segment(job, image)
        saved = _save(job, masks, image, photo) if job.formats else []
    except (ValueError, OSError, MemoryError) as error:
        failed[str(photo)] = one_line(error)
        return
    rows.append({"file": str(photo), "size": list(masks.size), "masks": masks.to_coco()})
    if not job.args.json:
        progress.print(_described(photo, masks, saved, detailed=not job.formats))
        for line in _losses(job, masks):
            progress.say(f"anymask segment: {photo}: {line}")


def _segment(job: _Job, image: "Image") -> "Masks":
    from anymask.segmentation import segment

    args, prompts = job.args, [*job.objects.values(), *job.names]
    masks = segment(
        image,
        prompts,
        model=job.model,
        multimask=args.multimask,
        zoom=args.zoom,
        semantic=args.semantic,
        tile=args.tile,
        overlap=args.overlap,
    )
    return numbered(masks, tuple(job.objects)).compact()


def _save(job: _Job, masks: "Masks", image: "Image", photo: Path) -> list[Path]:
    """All files of one photo; where one cannot be written, none of the new ones stays."""
    from anymask.data.exports import output_paths, save

    stem = job.args.prefix + photo.stem
    paths = output_paths(job.args.output, stem, job.formats).values()
    new = [path for path in paths if not path.exists()]
    prompts, names = list(job.objects.values()), job.args.text
    try:
        return save(
            masks, image, job.args.output, stem, job.formats, file_name=photo.name, categories=names, prompts=prompts
        )
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _losses(job: _Job, masks: "Masks") -> list[str]:
    """What the formats asked for cannot hold of this result; low-resolution logits interest nobody here."""
    from anymask.data.exports import lost_by

    lost = {name: [words for words in lost_by(masks, name) if "logits" not in words] for name in job.args.format}
    return [f"{name} does not keep {', '.join(words)}" for name, words in lost.items() if words]


def _described(photo: Path, masks: "Masks", saved: Sequence[Path], detailed: bool) -> str:
    """What was found in one photo: a line, and without -o a table."""
    h, w = masks.size
    named = ", ".join(f"{label} {masks.labels.count(label)}" for label in dict.fromkeys(masks.labels) if label)
    count = f"{len(masks)} mask{'' if len(masks) == 1 else 's'}" if len(masks) else "nothing found"
    line = f"{photo}: {w} x {h}, {count}{f' ({named})' if named else ''}"
    if saved:
        line += f" -> {', '.join(str(path) for path in saved)}"
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


def _finish(args: argparse.Namespace, rows: list[dict[str, Any]], failed: dict[str, str]) -> int:
    """Shows the document, names the failures, and says by the exit code how it went."""
    if args.json and (rows or not failed):
        show_json(rows)
    elif not rows and not failed:
        print("no photos found: nothing to segment")
    for name, problem in failed.items():
        say(f"anymask segment: {problem if name in problem else f'{name}: {problem}'}")
    if failed and len(rows) + len(failed) > 1:
        say(f"anymask segment: {len(failed)} of {len(rows) + len(failed)} inputs failed: {', '.join(failed)}")
    return DONE if not failed else SOME_FAILED if rows else WRONG_USE


SEGMENT = Command(
    description="Masks of what you point at, box, sketch or name in photos.",
    examples=(
        "anymask segment photo.jpg --point 320,240 --point 10,10,0 -o out/",
        "anymask segment photo.jpg --box 40,30,600,410 --box 5,5,90,80 --json",
        'anymask segment "photos/*.jpg" other.png --text cat --text "coffee cup" -o out/ --format coco --format png',
        "anymask segment photo.jpg --mask rough.png --point 100,80 --multimask -o out/",
        "anymask segment big.tif --text coin --tile 1024 --overlap 128 -o out/",
        'anymask segment photo.jpg --text "red car" --exemplar 10,10,80,60 --not-exemplar 90,10,140,60'
        " --model sam3.pt -o out/",
    ),
    notes=NOTES
    + """

results:
  name.jpg gives name.json and name.overlay.png under -o. Photos of one name from two folders in one run are refused.
  exit code 0: done; 1: some inputs failed (named); 2: wrong use, or nothing could be done; 130: interrupted""",
    add_flags=add_flags,
    run=run,
)
