"""`anymask segment`: photos and prompts to masks, shown as a table or JSON, saved under `-o`.

Prompts are checked before the first photo is read; `cli/photos.py` has all that is not about prompts.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anymask.cli.commands import Command
from anymask.cli.grounding import NOTES as TEXT_NOTES
from anymask.cli.grounding import add_grounding_flags, check_background, cleanup_of, load_asked, read_fitted
from anymask.cli.photos import EXIT_CODES, Advance, Work, add_photo_flags, add_result_flags, load_model, run_photos
from anymask.cli.prompts import NOTES, add_prompt_flags, exemplar_files, numbered, read_names, read_objects

if TYPE_CHECKING:
    from anymask.data.scorers import FittedScorer
    from anymask.grounding.pipeline import Grounding
    from anymask.models.protocol import Model
    from anymask.types import Image, Masks, Prompt

DEFAULT_FORMATS = ("coco", "overlay")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Inputs, prompts, what to compute, and where results go."""
    add_prompt_flags(parser)
    add_grounding_flags(parser)
    how = add_photo_flags(parser)
    how.add_argument("--multimask", action="store_true", help="three masks an object instead of the best one")
    how.add_argument("--zoom", action="store_true", help="look again, closer, around each object: for small ones")
    how.add_argument("--semantic", action="store_true", help="for a text one mask of everything, not one an instance")
    tile_help = "look at a big image in squares of this side, one after another: for texts and boxes"
    how.add_argument("--tile", type=int, metavar="N", help=tile_help)
    how.add_argument(
        "--overlap", type=int, metavar="N", help="by how much tiles overlap (default: an eighth of --tile)"
    )
    add_result_flags(parser, DEFAULT_FORMATS)


def run(args: argparse.Namespace) -> int:
    """Segments every input; the code says whether all, some or none could be done."""
    if not (args.parts or args.text or args.not_text or args.concept or args.exemplar or args.not_exemplar):
        raise ValueError(
            "nothing to segment: give a --point, --box, --mask, --text, --concept or --exemplar (see anymask segment"
            " --help)"
        )
    objects = read_objects(args.parts)
    names = read_names(args.text, args.not_text, args.exemplar, args.not_exemplar, args.concept)
    shown = [value for flag, value in args.parts if flag == "mask"]
    shown += [*exemplar_files([*args.exemplar, *args.not_exemplar]), *args.concept]
    return run_photos("segment", args, DEFAULT_FORMATS, lambda: _work(args, objects, names), shown)


def _work(args: argparse.Namespace, objects: "dict[int, Prompt]", names: "Sequence[Prompt]") -> Work:
    from anymask.grounding.loading import with_thresholds
    from anymask.models.feature_cache import FeatureCache
    from anymask.segmentation import segment

    fitted = read_fitted(args)
    prompts = [*objects.values(), *(with_thresholds(names, fitted) if fitted else names)]
    model, grounding = _load(args, prompts, fitted)
    cache = FeatureCache(args.cache)

    def find(image: "Image", _: Advance) -> "Masks":
        masks = segment(
            image,
            prompts,
            model=model,
            multimask=args.multimask,
            zoom=args.zoom,
            semantic=args.semantic,
            tile=args.tile,
            overlap=args.overlap,
            detector=grounding,
            cleanup=cleanup_of(args),
            min_score=args.min_score,
            cache=cache,
        )
        return numbered(masks, tuple(objects)).compact()

    categories = [prompt.title for prompt in names]
    return Work(find, lambda masks: masks.to_coco(), categories=categories, prompts=list(objects.values()))


def _load(
    args: argparse.Namespace, prompts: "Sequence[Prompt]", fitted: "FittedScorer | None"
) -> "tuple[Model, Grounding | None]":
    """The model, if it understands the prompts, and what finds names for it."""
    from anymask.asking import check_tiles, check_understood, check_wanted, check_zoom
    from anymask.segmentation import cleaner

    check_wanted(prompts, multimask=args.multimask, zoom=args.zoom)
    check_tiles(prompts, args.tile, args.overlap, zoom=args.zoom)
    cleaner(cleanup_of(args))
    check_background(args)
    model = load_model(args)
    grounding = load_asked(args, model, prompts, fitted)
    check_understood(model, prompts, grounding)
    check_zoom(model, prompts, grounding, zoom=args.zoom)
    return model, grounding


SEGMENT = Command(
    description="Masks of what you point at, box, sketch or name in photos.",
    examples=(
        "anymask segment photo.jpg --point 320,240 --point 10,10,0 -o out/",
        "anymask segment photo.jpg --box 40,30,600,410 --box 5,5,90,80 --json",
        'anymask segment "photos/*.jpg" other.png --text cat --text "coffee cup" -o out/ --format coco --format png',
        "anymask segment photo.jpg --mask rough.png --point 100,80 --multimask -o out/",
        'anymask segment photo.jpg --text "a red car" --text dog --not-text "toy car" -o out/ --json',
        "anymask segment photo.jpg --text person --model sam2.1-hiera-tiny --detector grounding-dino-tiny -o out/"
        " --format panels",
        "anymask segment big.tif --text coin --tile 1024 --overlap 128 -o out/",
        'anymask segment photo.jpg --text "red car" --exemplar 10,10,80,60 --not-exemplar 90,10,140,60'
        " --model sam3.pt -o out/",
    ),
    notes=f"""{NOTES}

{TEXT_NOTES}

results:
  name.jpg gives name.json and name.overlay.png under -o. Photos of one name from two folders in one run are refused.
  {EXIT_CODES}""",
    add_flags=add_flags,
    run=run,
)
