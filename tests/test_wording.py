"""What words would do it: nearest words that can be typed, nearest phrases as they are read, a search that finds."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from anymask.adapting import wording
from anymask.adapting.judging import mean_iou
from anymask.adapting.slopes import loss_of, slope
from anymask.adapting.wording import WordSearch, nearest_phrases, nearest_pieces, search_words
from anymask.models.word_space import word_space_of
from anymask.types import Prompt
from tiny import tiny_model
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text, write_tiny_merges
from word_galleries import disk_gallery, no_images, phrase_gallery


@pytest.fixture(scope="module")
def space():
    return word_space_of(tiny_model())


def sam3_space(folder, build=tiny_sam3):
    return word_space_of(build(write_tiny_merges(folder)))


# --- reading


@pytest.mark.parametrize("build", [tiny_sam3, tiny_sam3_lite_text])
def test_sam3_reads_vectors_as_the_words_they_are_of(build, tmp_path):
    space = sam3_space(tmp_path, build)
    [question] = space.model.encode_text([Prompt.text("red car")]).tensors["questions"]
    assert torch.equal(space.read(space.vectors("red car")), question.tokens.mean(dim=0))


def test_pocket_reads_vectors_as_the_words_they_are_of(space):
    ids, mask = space.model.tokenizer(["red car"])
    torch.testing.assert_close(space.read(space.vectors("red car")), space.model.tower(ids, mask).pooled[0])


# --- the nearest


def test_the_nearest_word_of_a_words_own_vector_is_the_word(space):
    [red, fox] = nearest_pieces(space, space.vectors("red fox"), most=3)
    assert (red[0].words, fox[0].words) == ("red", "fox")
    assert red[0].cosine == pytest.approx(1) and len(red) == 3
    assert red[0].cosine > red[1].cosine >= red[2].cosine


def test_marks_fragments_and_lone_letters_are_no_words(space):
    rows = [space.pieces.index(piece) for piece in ("[CLS]", "[unused7]", "##ing", "a", "?")]
    for found in nearest_pieces(space, space.table[rows], most=4):
        for one in found:
            assert one.words.isalnum() and len(one.words) > 1 and len(space.spell(one.words)) == 1


def test_of_a_small_vocabulary_all_words_are_near(tmp_path):
    space = sam3_space(tmp_path)
    [found] = nearest_pieces(space, space.vectors("car"), most=10)
    assert found[0].words == "car" and sorted(one.words for one in found) == ["car", "dog", "red"]


def test_phrases_are_ranked_by_what_the_text_transformer_makes_of_them(space):
    vectors = space.vectors("red fox") + 0.01
    phrases = ["blue whale", "red fox", "fox", "red fox"]
    found = nearest_phrases(space, vectors, phrases)
    expected = {p: float(functional.cosine_similarity(space.read(space.vectors(p)), space.read(vectors), 0))
                for p in phrases}  # fmt: skip
    assert found[0].words == "red fox" and [one.words for one in found] == sorted(expected, key=lambda p: -expected[p])
    assert [one.cosine for one in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda space: nearest_phrases(space, space.vectors("fox"), []), "phrases must be one or more .*, got none"),
        (lambda space: nearest_phrases(space, space.vectors("fox"), [" "]), "must have 1 to 10 pieces, got 0 of ' '"),
        (lambda space: nearest_pieces(space, torch.zeros(2, 9)), r"must be \(n, 16\) for pocket, got \(2, 9\)"),
        (lambda space: nearest_pieces(space, torch.zeros(0, 16)), r"must be \(n, 16\) for pocket, got \(0, 16\)"),
        (lambda space: WordSearch(most_words=0), "most_words must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_compared_is_told(space, call, message):
    with pytest.raises(ValueError, match=message):
        call(space)


# --- the slope


def test_the_slope_is_that_of_the_loss(tmp_path):
    gallery = disk_gallery(tmp_path)
    vectors = gallery.space.vectors("red fox")
    found, step = slope(gallery, [0, 2], vectors), 0.1

    def loss(moved):
        rows = (loss_of(gallery, row, moved) for row in (0, 2))
        return float(sum(rows)) / 2

    along = found / found.norm()
    rise = (loss(vectors + step * along) - loss(vectors - step * along)) / (2 * step)
    assert rise == pytest.approx(float(found.norm()), rel=0.1) and rise > 1e-5
    assert all(one.grad is None for part in gallery.space.readers.values() for one in part.parameters())


# --- the search


def test_near_words_are_put_together(tmp_path):
    gallery = phrase_gallery(tmp_path, "red fox")
    found = search_words(gallery, gallery.space.vectors("fox red"), WordSearch(most_judged=40, gradient_images=1))
    assert sorted(found.phrase.split()) == ["fox", "red"] and found.iou == found.embedding_iou == 1
    assert len({one.phrase for one in found.tried}) == len(found.tried) <= 40
    assert [one.iou for one in found.tried] == sorted((one.iou for one in found.tried), reverse=True)


def test_the_slope_proposes_words_that_are_not_near(tmp_path, monkeypatch):
    gallery = phrase_gallery(tmp_path, "fox")
    row = int(gallery.space.spell("fox")[0])
    with torch.no_grad():
        gallery.space.model.tower.transformer.embeddings.word_embeddings.weight[row] *= 10
    monkeypatch.setattr(wording, "slope", lambda gallery, rows, vectors: -gallery.space.table[row].expand_as(vectors))
    away = -gallery.space.vectors("fox")
    assert all(one.words != "fox" for one in nearest_pieces(gallery.space, away, 12)[0])
    search = WordSearch(most_judged=10, round_size=4)
    found = search_words(gallery, away, search, ["green"])
    assert found.phrase == "fox" and found.iou == 1 and found.embedding_iou == 0


def test_a_longer_phrase_loses_its_useless_word(tmp_path):
    gallery = phrase_gallery(tmp_path, "red fox")
    found = search_words(gallery, gallery.space.vectors("green"), WordSearch(most_judged=20, round_size=2),
                         ["red green fox"])  # fmt: skip
    assert found.phrase == "red fox"


def test_a_word_of_no_pieces_stands_in_nobodys_way(tmp_path):
    gallery = phrase_gallery(tmp_path, "red fox green")
    search = WordSearch(most_judged=30, round_size=4, gradient_images=1)
    found = search_words(gallery, gallery.space.vectors("green"), search, ["red \u200b fox"])
    assert sorted(found.phrase.split()) == ["fox", "green", "red"]


def test_phrases_are_judged_as_they_are_typed_and_told_as_they_come(tmp_path):
    gallery, heard = disk_gallery(tmp_path, 2, tiny_sam3(write_tiny_merges(tmp_path))), []
    search = WordSearch(most_judged=9, round_size=3, most_words=2, gradient_images=2)
    vectors = gallery.space.vectors("red red dog")
    found = search_words(
        gallery, vectors, search, ["a cat", "red car"], lambda count, best: heard.append((count, best.iou))
    )
    assert [count for count, _ in heard] == list(range(1, len(found.tried) + 1)) and heard[-1][1] == found.iou > 0
    assert 5 <= len(found.tried) <= 9
    assert {"a cat", "red car", "red", "car", "dog"} <= {one.phrase for one in found.tried}
    assert all(set(one.phrase.split()) <= {"a", "cat", "red", "car", "dog"} for one in found.tried)
    for one in found.tried:
        masks = [(gallery.mask(row, gallery.space.vectors(one.phrase)), gallery.truth(row)) for row in range(2)]
        assert one.iou == pytest.approx(np.mean([(mask & truth).sum() / (mask | truth).sum() for mask, truth in masks]))
    assert found.embedding_iou == mean_iou(gallery.judge(vectors))


def test_words_are_sought_on_images(space):
    with pytest.raises(ValueError, match="words are sought on one or more images, got none"):
        search_words(no_images(space), space.vectors("fox"))
