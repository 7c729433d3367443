"""What commands that take names share: which detector and scorer serve, how masks are judged, how they are cleaned."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anymask.data.scorers import FittedScorer
    from anymask.grounding.pipeline import Grounding
    from anymask.grounding.protocol import Detector
    from anymask.grounding.score import Background
    from anymask.models.protocol import Model
    from anymask.types import Prompt

BACKGROUNDS: "tuple[Background, ...]" = ("blurred", "grey")  # the first is the default
OF_TEXTS = ("cleanup", "raw", "semantic")

_log = logging.getLogger("anymask")

NOTES = """\
texts:
  pocket and sam3 find names themselves. Any other model, or any with --detector, goes through a detector: a name of
  anymask's (grounding-dino-tiny, grounding-dino-base, mm-grounding-dino-tiny, owlv2-base, ...), a hub id, a folder, an
  original .pth file, or windows, which needs no weights of its own. Without --detector one that is on this machine is
  taken, else windows. What finds and scores the names, and what stands in for what, is in the JSON as made_by."""


def add_grounding_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that only texts need."""
    texts = parser.add_argument_group("texts")
    texts.add_argument("--detector", metavar="NAME", help="what finds the names, if not the model (see below)")
    texts.add_argument("--fallback", action="store_true", help="windows stand in for a detector that cannot be had")
    scorer_help = "what judges the masks: pocket, or members of an ensemble as ViT-L-14:openai=0.25 (repeat)"
    texts.add_argument("--scorer", action="append", default=[], metavar="NAME", help=scorer_help)
    texts.add_argument(
        "--scorer-file", type=Path, metavar="FILE", help="weights and thresholds of anymask train scorer"
    )
    background_help = "around a mask that is judged: blurred or grey (default: blurred)"
    texts.add_argument("--background", metavar="KIND", help=background_help)
    texts.add_argument("--box-threshold", type=float, metavar="P", help="a box counts from here (0.3; of windows 0.15)")
    texts.add_argument("--text-threshold", type=float, metavar="P", help="a word of a name counts from here (0.25)")
    texts.add_argument("--min-score", type=float, default=0.0, metavar="P", help="leave out masks of a lower score")
    quality_help = "how masks are judged, as text=0.6,compactness=0.2,size=0.1,smoothness=0.1,best_size=0.05-0.5"
    texts.add_argument("--quality", metavar="LIST", help=quality_help)
    texts.add_argument("--no-refine", action="store_true", help="do not ask again for masks of low quality")
    texts.add_argument("--cache", type=Path, metavar="FOLDER", help="keep features of images and names here")
    texts.add_argument("--cleanup", metavar="KIND", help="adaptive or classic (default: adaptive)")
    texts.add_argument("--raw", action="store_true", help="masks of texts as the model gives them, without clean-up")


def read_fitted(args: argparse.Namespace) -> "FittedScorer | None":
    """What --scorer-file holds."""
    from anymask.data.scorers import read_scorer

    return read_scorer(args.scorer_file) if args.scorer_file else None


def load_asked(
    args: argparse.Namespace, model: "Model", prompts: "Sequence[Prompt]", fitted: "FittedScorer | None" = None
) -> "Grounding | None":
    """The detector and scorer that the flags ask for, or the model needs for these prompts; None if neither."""
    from anymask.grounding.loading import as_settings, load_grounding
    from anymask.models.feature_cache import FeatureCache

    _check_unused(args, model, prompts)
    named = [prompt for prompt in prompts if not prompt.is_spatial and not prompt.exemplars]
    if not named or (args.detector is None and model.capabilities.text):
        _log_all(_unlearned(args, prompts, fitted, model.name))
        return None
    grounding = load_grounding(
        args.detector,
        scorer=args.scorer or (fitted.scorer if fitted else ()),
        settings=as_settings(fitted, args.quality, args.box_threshold, args.text_threshold, refine=not args.no_refine),
        model=model,
        background=args.background or BACKGROUNDS[0],
        fallback=args.fallback,
        cache=FeatureCache(args.cache),
        device=args.device,
    )
    _check_thresholds(args, grounding.detector)
    notes = _unlearned(args, prompts, fitted, grounding.detector.name)
    _log_all(notes)
    return replace(grounding, notes=(*grounding.notes, *notes))


def cleanup_of(args: argparse.Namespace) -> str | None:
    """The name of the clean-up, None for none. Raises ValueError where both are asked for."""
    if args.raw and args.cleanup is not None:
        raise ValueError("--raw leaves masks as they are and --cleanup cleans them: give one of them")
    return None if args.raw else str(args.cleanup or "adaptive")


def check_background(args: argparse.Namespace) -> None:
    """Raises ValueError for a --background that is none, whether it is used or not."""
    if args.background not in (None, *BACKGROUNDS):
        raise ValueError(f"--background must be {' or '.join(BACKGROUNDS)}, got {args.background!r}")


def _check_unused(args: argparse.Namespace, model: "Model", prompts: "Sequence[Prompt]") -> None:
    """Raises ValueError for flags that would have no effect."""
    of_detector = ("scorer", "quality", "box_threshold", "text_threshold", "fallback", "background", "no_refine")
    given = {name for name in (*of_detector, *OF_TEXTS) if getattr(args, name) not in (None, False, [])}
    semantic = [prompt for prompt in prompts if not prompt.is_spatial]
    found_itself = args.detector is None and model.capabilities.text
    for name in (name for name in (*of_detector, *OF_TEXTS) if name in given):
        flag = f"--{name.replace('_', '-')}"
        if name in of_detector and (not semantic or found_itself):
            why = "this model finds names itself: add --detector" if semantic else "there is no --text"
            raise ValueError(f"{flag} is for names that a detector finds, and {why}")
        if not semantic:
            raise ValueError(f"{flag} is for masks of texts, and there is no --text")


def _check_thresholds(args: argparse.Namespace, detector: "Detector") -> None:
    """Raises ValueError for thresholds that mean nothing to the detector."""
    from anymask.grounding.windows import WindowDetector

    is_windows = isinstance(detector, WindowDetector)
    if args.text_threshold is not None and (is_windows or _is_owl(detector)):
        raise ValueError(f"--text-threshold is for detectors of phrases, and {detector.name} has no score of words")
    if is_windows and args.box_threshold == 0:
        raise ValueError("--box-threshold must be above 0 for windows: every place reaches 0")


def _is_owl(detector: "Detector") -> bool:
    from anymask.grounding.owl import OwlDetector

    return isinstance(detector, OwlDetector)


def _unlearned(
    args: argparse.Namespace, prompts: "Sequence[Prompt]", fitted: "FittedScorer | None", whose: str
) -> tuple[str, ...]:
    """What was learned for other models or detectors alone: their usual thresholds hold."""
    learned = [one for prompt in prompts if prompt.name not in args.text for one in prompt.learned]
    sources = [f"the concept {one.name!r}" for one in learned if one.thresholds and whose not in one.thresholds]
    if fitted and whose not in fitted.of_all and not fitted.thresholds.get(whose):
        sources.append(str(args.scorer_file))
    return tuple(f"{source} holds no threshold for {whose}: the usual one holds" for source in sources)


def _log_all(notes: "Sequence[str]") -> None:
    for note in notes:
        _log.info("%s", note)
