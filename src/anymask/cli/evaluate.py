"""`anymask evaluate promptable`: how well a model answers clicks, boxes and names, as table, JSON and Report file."""

import argparse
import os
from pathlib import Path

from anymask.cli.commands import DONE, INTERRUPTED, Command, say, show_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of the measurement, and where the report goes."""
    from anymask.cli.flags import add_settings
    from anymask.evaluation.promptable import PromptableSettings

    add_settings(parser, PromptableSettings)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="save the report as this JSON file")


def run(args: argparse.Namespace) -> int:
    """Measures image by image, then shows the report."""
    from anymask.cli.flags import read_settings
    from anymask.cli.progress import Progress
    from anymask.evaluation import reports
    from anymask.evaluation.promptable import ImageRecord, PromptableSettings, evaluate_promptable
    from anymask.evaluation.summaries import summarise
    from anymask.models.load import load

    settings = read_settings(args, PromptableSettings)
    if args.output is not None:
        _check_output(args.output)
    model = load(
        settings.model,
        settings.device,
        settings.dtype,
        settings.runtime,
        image_size=settings.image_size,
        window_size=settings.window_size,
    )
    records: list[ImageRecord] = []
    with Progress("image") as progress:
        try:
            for record in evaluate_promptable(model, settings):
                records.append(record)
                progress.show(len(records), record.total, record.file_name)
        except KeyboardInterrupt:
            say(f"anymask evaluate promptable: interrupted after {len(records)} images: no report was written")
            return INTERRUPTED
    report = summarise(records, settings, model)
    if args.output is not None:
        reports.write_report(args.output, report)
    if args.json:
        show_json(reports.to_json(report))
    else:
        print(reports.to_text(report))
    return DONE


def _check_output(path: Path) -> None:
    """Before the work, not after it."""
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
    add_flags=add_flags,
    run=run,
)
