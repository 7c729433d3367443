"""`anymask teach concept`: textual inversion, of one image or of a class."""

import argparse
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, Command, say, show_json
from anymask.cli.runs import add_resume, check_resume, kept, numbers, record_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anymask.adapting.inversion import Inversion
    from anymask.adapting.judging import Judgement
    from anymask.adapting.settings import InversionSettings


def add_concept_flags(parser: argparse.ArgumentParser) -> None:
    """The settings of a run."""
    from anymask.adapting.settings import InversionSettings
    from anymask.cli.flags import add_settings

    add_settings(parser, InversionSettings)
    add_resume(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="learn nothing: tell the memory and the time it would take, also without weights",
    )


def run_concept(args: argparse.Namespace) -> int:
    """Says what will learn from what, learns, and writes what came of it."""
    from anymask.adapting.settings import InversionSettings
    from anymask.cli.flags import read_settings
    from anymask.cli.progress import Progress

    settings = read_settings(args, InversionSettings)  # raises before PyTorch is loaded
    if args.dry_run:
        return _estimate(args, settings)
    check_resume(args)

    from anymask.adapting.inversion import Inversion

    run = Inversion(settings)
    record_settings(args, settings)
    for line in run.remarks():
        say(line)
    with Progress("step") as progress:
        try:
            for record in run.steps():
                shown = {
                    name: value
                    for name, value in record.metrics.items()
                    if name in ("loss", "iou", "judged_iou", "score")
                }
                progress.show(record.step, record.steps, numbers(shown))
        except KeyboardInterrupt:
            at = f"interrupted at step {run.standing.step}, the last saved is {run.saved_step}"
            say(f"anymask teach concept: {at}: {kept(settings.output)}")
            return INTERRUPTED
        progress.say("drawing what came of it")
        _finish(args, run)
    return SOME_FAILED if run.standing.diverged or run.lessons.failed else DONE


def _finish(args: argparse.Namespace, run: "Inversion") -> None:
    from anymask.adapting.records import write_run

    judged = run.judge(run.best)
    files = write_run(run, judged)
    at, found = run.standing, _results(run, judged)
    if args.json:
        show_json({"concept": str(files[0]), "files": [str(path) for path in files], **found})
        return
    where = "held-out images" if len(run.held_out) else "the images learned from"
    print(f"IoU on {where}: {at.before:.3f} -> {at.best:.3f} (step {at.best_step} of {at.step})")
    count = f"{found['found']} of {len(judged)} images"
    print(f"found in {count}, as its score is at least {run.space.sure:g} there; mean score {found['score']:.2f}")
    print(f"{files[0]} is the concept: anymask segment photo.jpg --concept {files[0]} -m {run.settings.model} -o out/")


def _results(run: "Inversion", judged: "Sequence[Judgement]") -> dict[str, Any]:
    at, learned = run.standing, run.lessons.learn
    return {
        "iou_before": round(at.before, 5),
        "iou": round(at.best, 5),
        "score": round(sum(one.score for one in judged) / len(judged), 5),
        "found": sum(one.found for one in judged),
        "judged": len(judged),
        "step": at.step,
        "best_step": at.best_step,
        "seconds": round(at.seconds, 2),
        "stopped": at.stopped or None,
        "images": len(run.learn),
        "held_out": len(run.held_out),
        "too_small_masks": run.too_small,
        "without_a_mask": list(learned.lone_images),
        "without_an_image": list(learned.lone_masks),
        "empty_masks": list(learned.empty),
        "failed": run.lessons.failed,
    }


def _estimate(args: argparse.Namespace, settings: "InversionSettings") -> int:
    from anymask.adapting.estimating import estimate
    from anymask.adapting.lessons import read_lessons

    lessons = read_lessons(settings)
    found = estimate(settings, lessons)
    if args.json:
        show_json({**found.as_json(), "images": len(lessons.learn), "failed": lessons.failed})
    else:
        print("\n".join([*found.lines(), *lessons.remarks()]))
    return SOME_FAILED if lessons.failed else DONE


CONCEPT = Command(
    description="Learns vectors that stand where a word would: a prompt for what has no good name. All weights rest.",
    examples=(
        'anymask teach concept --image a.jpg --mask a.png --seed-text "camouflaged animal" --steps 150 -o run/',
        "anymask teach concept --images DIR --masks DIR --seed-text polyp --steps 300 --batch-size 8 --model pocket"
        " -o run/ --resume",
        "anymask teach concept --image a.jpg --mask a.png --model facebook/sam3 --dry-run",
        "anymask segment photo.jpg --concept run/concept.safetensors --model pocket -o out/ --json",
    ),
    add_flags=add_concept_flags,
    run=run_concept,
)
