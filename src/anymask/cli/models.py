"""`anymask models`: the catalogue as a table or JSON."""

import argparse
from typing import Any

from anymask.cli.commands import DONE, Command, show_json, table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None but those of every command."""


def run(args: argparse.Namespace) -> int:
    """Shows every model that can be named, installed or not."""
    from anymask.models.load import CATALOGUE

    rows = [entry.describe() for entry in CATALOGUE.values()]
    if args.json:
        show_json(rows)
        return DONE
    print(table([_short(row) for row in rows]))
    for row in rows:
        print(f"\n{row['name']}: {row['note']}; licence of the weights: {row['licence']}")
        for kind, note in row["notes"].items():
            print(f"  {kind}: {note}")
    return DONE


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": row["name"],
        "family": row["family"],
        "prompts": ", ".join(row["prompts"]),
        "MB": f"{row['megabytes']:g}",
        "installed": row["installed"],
    }


MODELS = Command(
    description="Which models can be named with -m, what they understand, and whether their weights are here.",
    examples=("anymask models", "anymask models --json"),
    add_flags=add_flags,
    run=run,
)
