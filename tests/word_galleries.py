"""Galleries of disks as a tiny pocket model sees them, and one whose truth is a phrase."""

from dataclasses import dataclass
from pathlib import Path

from anymask.adapting.judging import Gallery, Judgement
from anymask.data.pairs import read_pairs
from anymask.models.word_space import word_space_of
from anymask.training.caching import FeatureStore
from anymask.types import Concept
from standin import write_disks
from tiny import tiny_model


def disk_gallery(folder: Path, count: int = 3, model=None) -> Gallery:
    space = word_space_of(model or tiny_model())
    images, masks = write_disks(folder / "disks", count)
    store = FeatureStore(space.model, folder / "features", 100, names=space.feature_names)
    return Gallery(space, read_pairs(images, masks).rows, store)


@dataclass(frozen=True, eq=False)
class PhraseGallery(Gallery):
    """IoU is that of the pieces of a phrase with those of `meant`."""

    meant: str = "red fox"

    def judge(self, vectors):
        wanted = set(self.space.spell(self.meant).tolist())
        rows = {int((self.space.table - one).norm(dim=1).argmin()) for one in vectors}
        iou = len(rows & wanted) / len(rows | wanted)
        return [Judgement("planted", iou, iou, 1.0, True)] * len(self.pairs)


def phrase_gallery(folder: Path, meant: str) -> PhraseGallery:
    real = disk_gallery(folder)
    return PhraseGallery(real.space, real.pairs, real.store, meant)


def concept_of(space, words: str, name: str = "mine") -> Concept:
    """The vectors of words, as if they had been learned."""
    return Concept(name, space.model.name, space.vectors(words).numpy(), base_digest=space.digest)


def no_images(space) -> Gallery:
    return Gallery(space, (), FeatureStore(space.model, Path("nowhere"), 0))
