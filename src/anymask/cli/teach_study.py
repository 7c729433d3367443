"""`anymask teach study`: embeddings of several classes, judged on held-out images beside controls and each other."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, Command, say, show_json
from anymask.cli.runs import CHECKPOINT, add_resume, check_resume

if TYPE_CHECKING:
    from anymask.adapting.study_settings import StudyClass

SETTINGS = "settings.json"
LEARNED_WITH = {"steps": 200, "tokens": 8, "batch_size": 16}  # docs/concepts.md says why
SHOWN = ("classes", "controls", "confusion", "presence")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The classes, the settings of the study, and those of teaching that are the same for every class."""
    from anymask.adapting.settings import InversionSettings
    from anymask.adapting.study_settings import LEARNING, StudySettings
    from anymask.cli.flags import add_settings

    add = parser.add_argument
    folder = "a class (repeat): a folder with images/, masks/ and, if there, train.txt, val.txt, spare.txt"
    known = "or one of the known sets camo, cod10k, kvasir-seg, which are fetched"
    add("--class", dest="classes", action="append", required=True, metavar="NAME=DIR", help=f"{folder}; {known}")
    phrase = "phrase that a class begins with (repeat; default: its name)"
    add("--seed-text", dest="seed_texts", action="append", default=[], metavar="NAME=TEXT", help=phrase)
    plain = "plain phrase for a class to beat (repeat; default: ten generic ones); the best on its train images counts"
    add("--phrase", dest="phrases", action="append", default=[], metavar="NAME=TEXT", help=plain)
    add_settings(parser.add_argument_group("study"), StudySettings)
    add_settings(parser.add_argument_group("teaching"), InversionSettings, LEARNED_WITH, only=LEARNING)
    add_resume(parser)


def run(args: argparse.Namespace) -> int:
    """Teaches and judges, then shows the tables."""
    from anymask.adapting.settings import InversionSettings
    from anymask.adapting.study import Study
    from anymask.adapting.study_settings import LEARNING, StudySettings
    from anymask.adapting.study_summary import readable
    from anymask.cli.flags import read_settings
    from anymask.cli.progress import Progress
    from anymask.data.files import write_json
    from anymask.evaluation import reports

    classes = _classes(args)
    settings = read_settings(args, StudySettings)
    learning = InversionSettings("any", settings.output, **{name: getattr(args, name) for name in LEARNING})
    check_resume(args, SETTINGS)
    study = Study(settings, classes, learning)
    write_json(settings.output / SETTINGS, study.told, indent=1)
    for line in study.remarks():
        say(line)
    done, parts = 0.0, 0
    with Progress("part") as progress:
        try:
            for record in study.steps():
                done, parts = record.done, record.total
                progress.show(record.done, record.total, record.text)
        except KeyboardInterrupt:
            say(f"anymask teach study: interrupted after {done:.3g} of {parts} parts: {_kept(args.output)}")
            return INTERRUPTED
    if args.json:
        show_json(reports.to_json(study.report))
    else:
        print(reports.to_text(readable(study.report), SHOWN))
        print(f"\n{settings.output / settings.stem}.md has the tables, .png and examples beside it the pictures")
    return SOME_FAILED if study.failed else DONE


def _classes(args: argparse.Namespace) -> "list[StudyClass]":
    """Of --class, --seed-text and --phrase."""
    from anymask.adapting.study_settings import StudyClass

    places = [_named(text, "--class", "DIR") for text in args.classes]
    names = [name for name, _ in places]
    told = {"--seed-text": args.seed_texts, "--phrase": args.phrases}
    texts = {flag: [_named(text, flag, "TEXT") for text in given] for flag, given in told.items()}
    for flag, given in texts.items():
        if unknown := [name for name, _ in given if name not in names]:
            raise ValueError(f"{flag} must be for one of the classes {', '.join(names)}, got {unknown[0]!r}")
    seeds = dict(texts["--seed-text"])
    return [
        StudyClass(name, place, seeds.get(name, ""), tuple(text for of, text in texts["--phrase"] if of == name))
        for name, place in places
    ]


def _named(text: str, flag: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise ValueError(f"{flag} must be NAME={what}, got {text!r}")
    return name.strip(), value.strip()


def _kept(output: Path) -> str:
    kept = sorted(output.glob(f"*/seed-*/{CHECKPOINT}"))
    if not kept:
        return "there was no checkpoint yet"
    runs = f"{len(kept)} run{'s' * (len(kept) != 1)}"
    return f"the checkpoints of {runs} in {output} are kept; run the same command with --resume to go on"


STUDY = Command(
    description="Teaches a phrase of learned vectors for each class, and judges it on held-out images beside controls.",
    examples=(
        "anymask teach study --class camouflage=DIR --class polyps=DIR --max-train 50 --max-val 20 --model pocket"
        " -o study/",
        "anymask teach study --class polyps=kvasir-seg --seed-text polyps=polyp --runs 3 -o study/ --resume",
        "anymask teach study --class camouflage=DIR --class polyps=DIR --runs 3 -o study/ --resume --spare",
    ),
    add_flags=add_flags,
    run=run,
)
