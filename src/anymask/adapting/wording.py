"""What words would do what learned vectors do: the nearest ones, and those that find the same things.

Vectors are compared before the text transformer, piece by piece, and phrases after it, as the model reads them. The
search is greedy over words: the gradient of the loss tells, to first order, which word in which place would lower it
most (HotFlip, Ebrahimi et al. 2018; AutoPrompt, Shin et al. 2020, section 2.2), and the phrases it proposes are judged
by what the model finds when they are typed.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anymask.adapting.judging import Gallery, mean_iou
from anymask.adapting.slopes import slope
from anymask.models.word_space import WordSpace

Heard = Callable[[int, "Tried"], None]  # how many phrases were judged, and the best of them


@dataclass(frozen=True)
class Alike:
    """Words, and the cosine of their vectors with those they were compared with."""

    words: str
    cosine: float


@dataclass(frozen=True)
class Tried:
    """A phrase, and its mean IoU over the images."""

    phrase: str
    iou: float


@dataclass(frozen=True)
class Wording:
    """The best words found, beside what the vectors themselves find; `tried` holds all phrases, the best first."""

    phrase: str
    iou: float
    embedding_iou: float
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class WordSearch:
    """How far to search."""

    most_judged: int = field(default=120, metadata={"help": "phrases judged at most"})
    most_words: int = field(default=4, metadata={"help": "words of a phrase at most, where it was not given"})
    round_size: int = field(default=12, metadata={"help": "phrases judged before the best of them is changed further"})
    gradient_images: int = field(default=6, metadata={"help": "images for a gradient at most"})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def nearest_pieces(space: WordSpace, vectors: Float[Tensor, "n d"], most: int = 5) -> list[list[Alike]]:
    """For each vector the words whose own vectors are nearest, by cosine.

    Left out are marks, unused rows, fragments and lone characters: only a word counts that, typed alone, is spelled by
    that piece alone.
    """
    cosines = functional.normalize(_checked(space, vectors), dim=1) @ functional.normalize(space.table.float(), dim=1).T
    return [
        [Alike(space.spoken([row]), float(one[row])) for row in islice(_typable(space, one), most)] for one in cosines
    ]


def nearest_phrases(space: WordSpace, vectors: Float[Tensor, "n d"], phrases: Sequence[str]) -> list[Alike]:
    """The phrases by how alike they are to the vectors as the model reads them, the nearest first."""
    if not phrases:
        raise ValueError("phrases must be one or more to find the nearest, got none")
    with torch.no_grad():
        meant = space.read(_checked(space, vectors))
        read = torch.stack([space.read(space.vectors(phrase)) for phrase in dict.fromkeys(phrases)])
    cosines = functional.cosine_similarity(read, meant[None]).tolist()
    alike = [Alike(phrase, cosine) for phrase, cosine in zip(dict.fromkeys(phrases), cosines, strict=True)]
    return sorted(alike, key=lambda one: -one.cosine)


def search_words(
    gallery: Gallery,
    vectors: Float[Tensor, "n d"],
    search: WordSearch = WordSearch(),
    phrases: Sequence[str] = (),
    heard: Heard | None = None,
) -> Wording:
    """The words that, typed, find most of the images' objects.

    Judged first are the nearest of `phrases` (half of the search at most) and of single words, then round by round what
    is proposed from the best phrase so far on, until `most_judged` are or nothing new is proposed.
    """
    if not len(gallery):
        raise ValueError("words are sought on one or more images, got none")
    hunt = _Hunt(gallery, _checked(gallery.space, vectors), search, heard)
    embedding_iou = mean_iou(gallery.judge(hunt.vectors))
    hunt.begin(phrases)
    while hunt.improve():
        pass
    tried = sorted(hunt.tried.values(), key=lambda one: -one.iou)
    return Wording(tried[0].phrase, tried[0].iou, embedding_iou, tuple(tried))


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a word goes: between those before and after; `word` stands there now, if any does."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    word: str | None = None

    def filled(self, *words: str) -> str:
        return " ".join([*self.before, *words, *self.after])


@dataclass(frozen=True, eq=False)
class _Hunt:
    """A search under way; `tried` are the phrases that were judged, in order."""

    gallery: Gallery
    vectors: Float[Tensor, "n d"]
    search: WordSearch
    heard: Heard | None
    tried: dict[str, Tried] = field(default_factory=dict)

    @property
    def best(self) -> Tried:
        return max(self.tried.values(), key=lambda one: one.iou)

    def begin(self, phrases: Sequence[str]) -> None:
        """Judges the nearest phrases, then a round of near words."""
        if phrases:
            near = nearest_phrases(self.gallery.space, self.vectors, phrases)
            self._judge((one.words for one in near), max(1, self.search.most_judged // 2))
        self._judge(self._near_words(), self.search.round_size)

    def improve(self) -> bool:
        """Changes the best phrase by one word, until one is better; False if none is or enough were judged."""
        before = self.best
        proposals = self._proposals(before.phrase)
        while self.best is before and self._judge(proposals, self.search.round_size):
            pass
        return self.best is not before

    def _judge(self, phrases: Iterable[str], most: int) -> int:
        """How many new phrases were judged, as they would be typed."""
        count = len(self.tried)
        new = (phrase for phrase in phrases if phrase not in self.tried)
        for phrase in islice(new, min(most, self.search.most_judged - count)):
            vectors = self.gallery.space.vectors(phrase)
            self.tried[phrase] = Tried(phrase, mean_iou(self.gallery.judge(vectors)))
            if self.heard is not None:
                self.heard(len(self.tried), self.best)
        return len(self.tried) - count

    def _near_words(self) -> Iterator[str]:
        """The words nearest to each vector, then the second of each, and so on."""
        near = nearest_pieces(self.gallery.space, self.vectors, self.search.round_size)
        return (one.words for one in chain.from_iterable(zip_longest(*near)) if one is not None)

    def _proposals(self, phrase: str) -> Iterator[str]:
        """The phrase with a word less, then with another one or one more: what its slope promises, and near words."""
        words = tuple(word for word in phrase.split() if len(self.gallery.space.spell(word)))  # not invisible ones
        places = [_Place(words[:i], words[i + 1 :], word) for i, word in enumerate(words)]
        shorter = [place.filled() for place in places] if len(words) > 1 else []
        if len(words) < self.search.most_words:
            places += [_Place(words[:i], words[i:]) for i in range(len(words) + 1)]
        promised = (one for _, one in heapq.merge(*(self._promised(place) for place in places)))
        near = (place.filled(word) for word in self._near_words() for place in places)
        mixed = chain.from_iterable(zip_longest(promised, near))
        return (one for one in chain(shorter, mixed) if one is not None and _is_typed(self.gallery.space, one))

    def _promised(self, place: _Place) -> Iterator[tuple[float, str]]:
        """The change of the loss that each word promises there, to first order, and the phrase: the best first."""
        space = self.gallery.space
        now = space.table.float().mean(dim=0) if place.word is None else space.vectors(place.word).mean(dim=0)
        before, after = (_vectors(space, words) for words in (place.before, place.after))
        vectors = torch.cat([before, now[None], after])[: space.most_vectors]
        rows = range(min(len(self.gallery), self.search.gradient_images))
        if len(before) >= space.most_vectors:
            return
        falls = (now - space.table.float()) @ slope(self.gallery, rows, vectors)[len(before)]
        for row in _typable(space, falls):
            yield -float(falls[row]), place.filled(space.spoken([row]))


def _checked(space: WordSpace, vectors: Tensor) -> Float[Tensor, "n d"]:
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != space.width:
        raise ValueError(f"vectors must be (n, {space.width}) for {space.model.name}, got {tuple(vectors.shape)}")
    return vectors.detach().float().to(space.table.device)


def _vectors(space: WordSpace, words: Sequence[str]) -> Float[Tensor, "n d"]:
    return space.vectors(" ".join(words)) if words else space.table.new_zeros(0, space.width).float()


def _typable(space: WordSpace, values: Float[Tensor, "v"]) -> Iterator[int]:
    """Rows that are a word, those of the highest values first."""
    for row in values.argsort(descending=True).tolist():
        word = space.spoken([row])
        if len(word) > 1 and word.isalnum() and space.spell(word).tolist() == [row]:
            yield row


def _is_typed(space: WordSpace, phrase: str) -> bool:
    """Whether what the tokenizer makes of the phrase reads as a phrase of the same pieces."""
    rows = space.spell(phrase).tolist()
    return 0 < len(rows) <= space.most_vectors and space.spell(space.spoken(rows)).tolist() == rows
