"""`anymask evaluate ...`: how well a model does on labelled images, as table, JSON and Report file.

`promptable`: clicks, boxes and names of a model. `text`: names to masks, by all that stands between them.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from anymask.cli.commands import DONE, INTERRUPTED, Command, say, show_json

if TYPE_CHECKING:
    from anymask.types import Report


@runtime_checkable
class _Record(Protocol):
    """What was measured on one of `total` images."""

    @property
    def file_name(self) -> str: ...

    @property
    def total(self) -> int: ...


Measured = TypeVar("Measured", bound=_Record)


def add_promptable_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of the measurement, and where the report goes."""
    from anymask.cli.flags import add_settings
    from anymask.evaluation.promptable import PromptableSettings

    add_settings(parser, PromptableSettings)
    _add_output(parser)


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of the measurement, and where the report goes."""
    from anymask.cli.flags import add_settings
    from anymask.evaluation.text import TextSettings

    add_settings(parser, TextSettings)
    _add_output(parser)


def run_promptable(args: argparse.Namespace) -> int:
    """Measures image by image, then shows the report."""
    from anymask.cli.flags import read_settings
    from anymask.evaluation.promptable import PromptableSettings, evaluate_promptable
    from anymask.evaluation.summaries import summarise
    from anymask.models.load import load

    settings = read_settings(args, PromptableSettings)
    _check_output(args.output)
    model = load(
        settings.model,
        settings.device,
        settings.dtype,
        settings.runtime,
        image_size=settings.image_size,
        window_size=settings.window_size,
    )
    records, whole = _measured(evaluate_promptable(model, settings))
    if not whole:
        say(f"anymask evaluate promptable: interrupted after {len(records)} images: no report was written")
        return INTERRUPTED
    return _show(summarise(records, settings, model), args)


def run_text(args: argparse.Namespace) -> int:
    """Measures image by image, then shows the report; where the user stops, that of the images so far is saved."""
    from anymask.cli.flags import read_settings
    from anymask.evaluation import reports
    from anymask.evaluation.text import TextSettings, evaluate_text, finders
    from anymask.evaluation.text_summary import summarise
    from anymask.models.load import load

    settings = read_settings(args, TextSettings)
    _check_output(args.output)
    model = load(settings.model, settings.device, settings.dtype, settings.runtime)
    records, whole = _measured(evaluate_text(finders(model, settings), settings))
    if whole:
        return _show(summarise(records, settings, model.name), args, ("notes", "ablation", "sources", "stages"))
    written = "no report was written"
    if args.output is not None and records:
        reports.write_report(args.output, summarise(records, settings, model.name))
        written = f"{args.output} is the report of these"
    say(f"anymask evaluate text: interrupted after {len(records)} images: {written}")
    return INTERRUPTED


def _measured(records: Iterable[Measured]) -> tuple[list[Measured], bool]:
    """The records, with a bar while they come, and whether they are all: the user may stop before the last."""
    from anymask.cli.progress import Progress

    done: list[Measured] = []
    with Progress("image") as progress:
        try:
            for record in records:
                done.append(record)
                progress.show(len(done), record.total, record.file_name)
        except KeyboardInterrupt:
            return done, False
    return done, True


def _show(report: "Report", args: argparse.Namespace, tables: tuple[str, ...] = ("sources",)) -> int:
    from anymask.evaluation import reports

    if args.output is not None:
        reports.write_report(args.output, report)
    if args.json:
        show_json(reports.to_json(report))
    else:
        print(reports.to_text(report, tables))
    return DONE


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="save the report as this JSON file")


def _check_output(path: Path | None) -> None:
    """Before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"-o must be the name of a JSON file, got the folder {path}: give {path / 'report.json'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}: make it, or give another -o")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write to {path.parent}: give another -o")


PROMPTABLE = Command(
    description="Measures clicks, boxes and text of a model on any set of images in COCO format.",
    examples=(
        "anymask evaluate promptable --images DIR --annotations FILE.json --model pocket --limit 100 --json",
        "anymask evaluate promptable --images DIR --annotations FILE.json --baselines -o report.json",
    ),
    add_flags=add_promptable_flags,
    run=run_promptable,
)
TEXT = Command(
    description="Measures how well names become masks, on any set of images in COCO format.",
    examples=(
        "anymask evaluate text --images DIR --annotations FILE.json --model pocket --limit 100 --json",
        "anymask evaluate text --images DIR --annotations FILE.json --model pocket --ablate -o report.json",
    ),
    add_flags=add_text_flags,
    run=run_text,
)
