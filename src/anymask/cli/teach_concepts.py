"""`anymask teach words`, `anymask teach inspect`: what words a learned concept stands for, and what is in it."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from anymask.cli.commands import DONE, INTERRUPTED, SOME_FAILED, Command, say, show_json, table

if TYPE_CHECKING:
    from torch import Tensor

    from anymask.adapting.judging import Gallery
    from anymask.adapting.wording import Tried, Wording
    from anymask.data.pairs import Pairs
    from anymask.models.word_space import WordSpace
    from anymask.training.caching import FeatureStore
    from anymask.types import Concept

CACHE_MB = 20000  # of features, for as long as the command runs
SHOWN = 5  # phrases of a search at the terminal


def add_words_flags(parser: argparse.ArgumentParser) -> None:
    """The concept, the images to judge words on, and how far to search."""
    from anymask.adapting.wording import WordSearch
    from anymask.cli.flags import add_settings

    parser.add_argument("concept", type=Path, metavar="CONCEPT", help="the file of a learned concept")
    where = parser.add_argument_group("images to judge words on: a folder with masks, or one image with its mask")
    where.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    where.add_argument("--masks", type=Path, metavar="DIR", help="folder of their masks, paired by file stem")
    where.add_argument("--list", type=Path, metavar="FILE", help="only these images: file stems, one a line")
    stems = "file stems of images held out, on which the best words are judged once more"
    where.add_argument("--val-list", type=Path, metavar="FILE", help=stems)
    where.add_argument("--image", type=Path, metavar="FILE", help="one image")
    where.add_argument("--mask", type=Path, metavar="FILE", help="its mask")
    how = parser.add_argument_group("how to search")
    how.add_argument("--phrases", type=Path, metavar="FILE", help="phrases to try beside its own, one a line")
    add_settings(how, WordSearch)
    _add_model(how)


def run_words(args: argparse.Namespace) -> int:
    """Tells the words nearest to the vectors, and those that find most, beside what the vectors find."""
    from anymask.adapting.judging import Gallery
    from anymask.adapting.wording import WordSearch, search_words
    from anymask.cli.flags import read_settings
    from anymask.cli.progress import Progress
    from anymask.data.concepts import read_concept

    search, concept = read_settings(args, WordSearch), read_concept(args.concept)
    phrases = [*_said_of(concept), *(_lines(args.phrases) if args.phrases else [])]
    pairs, held_out = _pairs(args)
    failed = {**pairs.failed, **(held_out.failed if held_out else {})}
    for line in [*pairs.remarks(), *(held_out.remarks() if held_out else [])]:
        say(line)
    with _loaded(args) as (space, store):
        vectors = space.vectors_of(concept)
        gallery = Gallery(space, pairs.rows, store)
        with Progress("phrase") as progress:

            def heard(count: int, best: "Tried") -> None:
                progress.show(count, search.most_judged, f"{best.iou:.3f} {best.phrase}")

            try:
                found = search_words(gallery, vectors, search, phrases, heard)
            except KeyboardInterrupt:
                say(f"anymask teach words: interrupted after {progress.done:g} phrases: nothing was saved")
                return INTERRUPTED
        document = {"images": len(gallery), **asdict(found), **_near(space, vectors, phrases)}
        document["held_out"] = _held_out(Gallery(space, held_out.rows, store), found, vectors) if held_out else None
    if args.json:
        show_json({**document, "failed": failed})
    else:
        _show_words(document)
    return SOME_FAILED if failed else DONE


def add_inspect_flags(parser: argparse.ArgumentParser) -> None:
    """The concepts, the image, and where the figures go."""
    parser.add_argument("concepts", nargs="+", type=Path, metavar="CONCEPT", help="files of learned concepts")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the image to look at (required)")
    mask = "its mask; without one a concept's own answer stands in for it"
    parser.add_argument("--mask", type=Path, metavar="FILE", help=mask)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of figures (required)")
    _add_model(parser)


def run_inspect(args: argparse.Namespace) -> int:
    """Writes the figures with their numbers, and says what they are."""
    from anymask.adapting.inspection import Inspection
    from anymask.adapting.judging import Gallery
    from anymask.adapting.lessons import read_pair
    from anymask.data.concepts import read_concept
    from anymask.data.images import read_image
    from anymask.data.pairs import Pair
    from anymask.types import Masks

    concepts = [read_concept(path) for path in args.concepts]
    if args.mask is None:
        pair = Pair(args.image, Masks.empty(read_image(args.image).size))
    else:
        pair = read_pair(args.image, args.mask)
    with _loaded(args) as (space, store):
        found = Inspection(Gallery(space, [pair], store), concepts, args.mask is not None).write(args.output)
    files = [str(args.output / f"{name}.{suffix}") for name in found for suffix in ("png", "json")]
    if args.json:
        show_json({**found, "files": files})
        return DONE
    for row in found["sensitivity"]:
        what = "IoU" if args.mask else "agreement"
        print(f"{row['concept']}: {what} {row['iou']:.3f}; without or instead of each vector:")
        print(table([{"vector": i, **one} for i, one in enumerate(row["vectors"], 1)]))
    print(f"wrote {', '.join(files)}")
    return DONE


def _add_model(group: argparse._ActionsContainer) -> None:
    model = "the model that the concept was made for: a name, hub id, folder or file (default: pocket)"
    group.add_argument("-m", "--model", default="pocket", help=model)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


@contextmanager
def _loaded(args: argparse.Namespace) -> "Iterator[tuple[WordSpace, FeatureStore]]":
    """The words of the model, and a place for features, each computed once."""
    from anymask.models.load import load
    from anymask.models.word_space import word_space_of
    from anymask.training.caching import FeatureStore

    space = word_space_of(load(args.model, args.device))
    with TemporaryDirectory() as folder:
        yield space, FeatureStore(space.model, Path(folder), CACHE_MB, names=space.feature_names)


def _said_of(concept: "Concept") -> list[str]:
    """The words that a concept began with, and its name."""
    said = (str(concept.made_by.get("seed_text", "")), concept.name)
    return [words for words in dict.fromkeys(said) if words.strip()]


def _pairs(args: argparse.Namespace) -> "tuple[Pairs, Pairs | None]":
    """Images to search on, and those held out, if any are named."""
    from anymask.adapting.lessons import read_pair, telling
    from anymask.data.pairs import Pairs, read_pairs, read_stems

    folders = (args.images, args.masks)
    if args.image is not None and folders == (None, None):
        if args.list or args.val_list:
            raise ValueError("--list and --val-list choose images of --images: leave them out with --image")
        return Pairs((read_pair(args.image, args.mask),)), None
    if args.image is not None or args.mask is not None or None in folders:
        raise ValueError("give what to judge words on once: --images and --masks, or --image and --mask")
    chosen, held_out = (read_stems(path) if path else None for path in (args.list, args.val_list))
    pairs = telling(read_pairs(*folders, chosen))
    if held_out is None:
        return pairs, None
    kept = tuple(pair for pair in pairs.rows if pair.image.stem not in held_out)
    if not kept:
        raise ValueError("no image is left to search on: all are held out")
    return replace(pairs, rows=kept), telling(read_pairs(*folders, held_out))


def _lines(path: Path) -> list[str]:
    """The phrases of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{path} must hold phrases, one a line, but is empty")
    return [line for line in lines if line]


def _near(space: "WordSpace", vectors: "Tensor", phrases: Sequence[str]) -> dict[str, Any]:
    from anymask.adapting.wording import nearest_phrases, nearest_pieces

    return {
        "nearest_words": [[asdict(one) for one in row] for row in nearest_pieces(space, vectors)],
        "nearest_phrases": [asdict(one) for one in nearest_phrases(space, vectors, phrases)] if phrases else [],
    }


def _held_out(gallery: "Gallery", found: "Wording", vectors: "Tensor") -> dict[str, Any]:
    from anymask.adapting.judging import mean_iou

    words = gallery.space.vectors(found.phrase)
    ious = {"iou": mean_iou(gallery.judge(words)), "embedding_iou": mean_iou(gallery.judge(vectors.to(words.device)))}
    return {"images": len(gallery), **ious}


def _show_words(found: dict[str, Any]) -> None:
    for i, row in enumerate(found["nearest_words"], 1):
        print(f"vector {i} is nearest to {_listed(row)}")
    if found["nearest_phrases"]:
        print(f"all of it is nearest to {_listed(found['nearest_phrases'][:SHOWN])}")
    print(table([{"phrase": one["phrase"], "IoU": one["iou"]} for one in found["tried"][:SHOWN]]))
    print(f"{_compared(found, found['phrase'])}, {len(found['tried'])} phrases judged")
    if found["held_out"]:
        print(f"held out: {_compared(found['held_out'], found['phrase'])}")


def _compared(found: dict[str, Any], phrase: str) -> str:
    images = f"{found['images']} image{'s' * (found['images'] != 1)}"
    return f'the words "{phrase}" reach IoU {found["iou"]:.3f}, the concept {found["embedding_iou"]:.3f} on {images}'


def _listed(row: "list[dict[str, Any]]") -> str:
    return ", ".join(f"{one['words']} {one['cosine']:.2f}" for one in row)


WORDS = Command(
    description="What words would do it: those nearest to a learned concept, and those that find most of the objects.",
    examples=(
        "anymask teach words run/concept.safetensors --images DIR --masks DIR --phrases names.txt",
        "anymask teach words run/concept.safetensors --image a.jpg --mask a.png --most-judged 60 --json",
    ),
    notes="What is found on the images was chosen by them: --val-list names others that judge it once more.",
    add_flags=add_words_flags,
    run=run_words,
)

INSPECT = Command(
    description="Figures of learned concepts: how alike they are, what lies between them, what each vector counts for.",
    examples=(
        "anymask teach inspect a.safetensors b.safetensors --image photo.jpg --mask photo.png -o out/ --json",
        "anymask teach inspect run/concept.safetensors --image photo.jpg -o out/",
    ),
    add_flags=add_inspect_flags,
    run=run_inspect,
)
