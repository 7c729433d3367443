"""`anymask export`: a model as a folder of graphs for ONNX Runtime or OpenVINO, which -m takes like any other."""

import argparse
import shlex
from pathlib import Path

from anymask.cli.commands import DONE, Command, add_size_flags, show_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, in what form, and where to."""
    parser.add_argument("model", metavar="MODEL", help="catalogue name, hub id, folder or file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--format", default="onnx", metavar="NAME", help="onnx or openvino (default: onnx)")
    kinds = "float32 or int8; with openvino also float16 (half the size) or bfloat16; int8 is of the encoder"
    parser.add_argument("--dtype", default="float32", metavar="KIND", help=f"{kinds} (default: float32)")
    photos = "photos to calibrate int8 on, best like those that you will segment (default: four bundled ones)"
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help=photos)
    add_size_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the folder and says how to use it."""
    from anymask.models.export import check_export, export, load_for_export

    check_export(args.output, args.format, args.dtype, args.calibrate)
    model = load_for_export(args.model, image_size=args.image_size, window_size=args.window_size)
    folder = export(model, args.output, args.format, args.dtype, args.calibrate)
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if args.json:
        show_json({"folder": str(folder), "format": args.format, "dtype": args.dtype, "files": files})
        return DONE
    print(f"{folder}: {args.format}, {args.dtype}, {sum(files.values()) / 1e6:.1f} MB in {len(files)} files")
    print(f"use it: anymask segment photo.jpg --point 100,80 -m {shlex.quote(_as_path(folder))} -o out/")
    return DONE


def _as_path(folder: Path) -> str:
    """As what cannot be read as a name of the catalogue."""
    return f"{folder}/"


EXPORT = Command(
    description="Writes encoder and decoder of a model as graphs that run without its weights.",
    examples=(
        "anymask export pocket -o exported/ --format onnx",
        "anymask export sam_vit_b.pth -o exported/ --format openvino --dtype int8 --calibrate photos/",
    ),
    notes="""\
Any number of prompts with any number of clicks go into the decoder; docs/runtimes.md says what graphs take and give.
An exported model answers points, boxes and masks on the CPU; names stay with the model itself.""",
    add_flags=add_flags,
    run=run,
)
