"""`anymask models`: models and detectors with a name, as tables or JSON; `pack`, `unpack` carry a model elsewhere."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import DONE, Command, show_json, table

if TYPE_CHECKING:
    from anymask.models.catalogue import Entry


def add_list_flags(parser: argparse.ArgumentParser) -> None:
    """None but those of every command."""


def run_list(args: argparse.Namespace) -> int:
    """Shows every model and detector that can be named, whether its weights are here or not."""
    from anymask.grounding import detect
    from anymask.models.catalogue import CATALOGUE
    from anymask.models.sources import find

    rows = [_row(entry, "model", find(name) is not None) for name, entry in CATALOGUE.items()]
    detectors = [_row(entry, "detector", detect.is_here(name)) for name, entry in detect.CATALOGUE.items()]
    if args.json:
        show_json([*rows, *detectors])
        return DONE
    print(table([_short(row) for row in rows]))
    for family in dict.fromkeys(row["family"] for row in rows):
        print(f"\n{_about([row for row in rows if row['family'] == family])}")
    print(f"\n{table([_short_detector(row) for row in detectors])}")
    return DONE


def add_pack_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and the tar to write."""
    parser.add_argument("model", metavar="MODEL", help="catalogue name, hub id, folder or file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the tar to write")


def run_pack(args: argparse.Namespace) -> int:
    """Writes the tar and says how to go on."""
    from anymask.models.packing import pack

    if args.output.is_dir():
        raise ValueError(
            f"-o must be the name of a tar, got the folder {args.output}: give {args.output / 'model.tar'}"
        )
    manifest = pack(args.model, args.output)
    if args.json:
        show_json({"file": str(args.output), "name": manifest.name, "licence": manifest.licence, **_size(manifest)})
        return DONE
    held = f"{len(manifest.files)} files, {manifest.size / 1e6:.1f} MB"
    print(f"{args.output}: {manifest.name}, {held}; licence of the weights: {manifest.licence}")
    print(f"on the other machine: anymask models unpack {shlex.quote(args.output.name)}")
    return DONE


def add_unpack_flags(parser: argparse.ArgumentParser) -> None:
    """The tar, and where its model goes."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a tar of `anymask models pack`")
    where = "the new folder of the model (default: where -m finds it by name, under ANYMASK_HOME if that is set)"
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=where)


def run_unpack(args: argparse.Namespace) -> int:
    """Puts the model in place and says how to name it."""
    from anymask.models.packing import unpack

    manifest, folder = unpack(args.file, args.output)
    model = manifest.name if args.output is None else str(folder)
    if args.json:
        show_json({"folder": str(folder), "model": model, "licence": manifest.licence, **_size(manifest)})
        return DONE
    print(f"{manifest.name} is whole, in {folder}; licence of the weights: {manifest.licence}")
    print(f"use it: anymask segment photo.jpg --box 40,30,600,410 -m {shlex.quote(model)} -o out/")
    return DONE


def _row(entry: "Entry", kind: str, installed: bool) -> dict[str, Any]:
    return {**entry.describe(), "kind": kind, "installed": installed}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": row["name"],
        "family": row["family"],
        "million": f"{row['parameters_millions']:g}",
        "MB": f"{row['megabytes']:g}",
        "installed": row["installed"],
        "gated": row["gated"],
        "hub id": row["hub_id"] or "-",
        "licence of the weights": row["licence"],
    }


def _short_detector(row: dict[str, Any]) -> dict[str, Any]:
    """Those of a family differ in size and in what their notes say."""
    return {
        "detector": row["name"],
        "million": f"{row['parameters_millions']:g}",
        "installed": row["installed"],
        "hub id": row["hub_id"],
        "note": row["note"],
    }


def _about(rows: list[dict[str, Any]]) -> str:
    """What the models of a family understand, and what is to be said of each, those of one note together."""
    lines = [f"{rows[0]['family']}: {', '.join(rows[0]['prompts'])}"]
    lines += [f"  {kind}: {note}" for kind, note in rows[0]["notes"].items()]
    for note in dict.fromkeys(row["note"] for row in rows):
        lines.append(f"  {', '.join(row['name'] for row in rows if row['note'] == note)}: {note}")
    return "\n".join(lines)


def _size(manifest: Any) -> dict[str, Any]:
    return {"files": [file.name for file in manifest.files], "bytes": manifest.size}


MODELS = Command(
    description="Which models and detectors can be named, what they understand, and whether their weights are here.",
    examples=("anymask models", "anymask models --json"),
    notes="""\
-m takes a name of this list, a hub id, a folder as transformers saves it, or an original checkpoint (sam_vit_*.pth,
sam_hq_*.pth, mobile_sam.pt, sam2*.pt, edgetam.pt, sam3.pt); --detector takes a name of the last table. Weights that are
nowhere here are fetched from the hub once; to carry those of a model to a machine without network: anymask models pack
--help""",
    add_flags=add_list_flags,
    run=run_list,
)

PACK = Command(
    description="Writes config, weights, tokenizer and licence of a model into one tar, for a machine without network.",
    examples=(
        "anymask models pack facebook/sam2.1-hiera-tiny -o sam2-tiny.tar",
        "anymask models pack sam3.pt -o sam3.tar",
    ),
    notes="A model that is not here yet is fetched first. The licence of the weights holds for the copy as well.",
    add_flags=add_pack_flags,
    run=run_pack,
)

UNPACK = Command(
    description="Puts a packed model where -m finds it by its name, after checking every file; whole or not at all.",
    examples=("anymask models unpack sam2-tiny.tar", "anymask models unpack sam2-tiny.tar -o weights/sam2-tiny"),
    add_flags=add_unpack_flags,
    run=run_unpack,
)
