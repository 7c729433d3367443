"""What commands that learn share: where a run was left, how it began, and its numbers in one line."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.pt"


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume."""
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder, if any")


def check_resume(args: argparse.Namespace, name: str = CHECKPOINT) -> None:
    """Never goes on by accident, nor writes over what an earlier run has learned."""
    checkpoint = args.output / name
    if checkpoint.is_file() and not args.resume:
        raise ValueError(f"{checkpoint} is of an earlier run: add --resume to go on with it, or give another -o")


def record_settings(args: argparse.Namespace, settings: Any, name: str = CHECKPOINT) -> None:
    """How the run began; a resumed one keeps that."""
    from anymask.cli.flags import write_settings

    if not (args.output / name).is_file():
        write_settings(args.output, settings)


def kept(output: Path, name: str = CHECKPOINT) -> str:
    """What is left of a run that was interrupted, and how to go on."""
    if not (output / name).is_file():
        return "there was no checkpoint yet"
    return f"{output / name} is kept; run the same command with --resume to go on"


def numbers(metrics: Mapping[str, float]) -> str:
    """Names and values, those that are not NaN."""
    return ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if value == value)
