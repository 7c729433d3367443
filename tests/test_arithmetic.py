"""Concepts compared, mixed, and taken apart: cosines, ends of a mixture, what a vector counts for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from anymask.adapting.arithmetic import interpolate, sensitivity, similarity, with_own_answers
from anymask.adapting.judging import mean_iou
from anymask.models.word_space import word_space_of
from anymask.types import Concept
from tiny import tiny_model
from tiny_sam3 import tiny_sam3, write_tiny_merges
from word_galleries import concept_of, disk_gallery, no_images, phrase_gallery


@pytest.fixture(scope="module")
def space():
    return word_space_of(tiny_model())


# --- similarity


def test_a_concept_is_like_itself_and_others_as_their_cosine_says(space):
    words = ("red fox", "fox", "blue whale")
    found = similarity(space, [concept_of(space, one, one) for one in words])
    assert found.names == words
    for matrix, of in ((found.read, space.read), (found.vectors, lambda vectors: vectors.mean(dim=0))):
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-6)
        cosine = functional.cosine_similarity(of(space.vectors("red fox")), of(space.vectors("fox")), dim=0)
        assert matrix[0, 1] == matrix[1, 0] == pytest.approx(float(cosine), abs=1e-6)
    assert found.vectors[0, 1] > found.vectors[0, 2]


def test_sam3_compares_concepts_too(tmp_path):
    space = word_space_of(tiny_sam3(write_tiny_merges(tmp_path)))
    found = similarity(space, [concept_of(space, "red car"), concept_of(space, "red car"), concept_of(space, "dog")])
    assert found.read[0, 1] == pytest.approx(1) and found.read[0, 2] < 0.999


# --- interpolation


def vectors_of(concept: Concept) -> np.ndarray:
    assert concept.token_embeddings is not None
    return concept.token_embeddings


def test_a_mixture_begins_at_the_first_and_ends_at_the_second(space):
    first, second = concept_of(space, "red fox", "a"), concept_of(space, "blue whale", "b")
    for share, expected in ((0, vectors_of(first)), (1, vectors_of(second))):
        assert np.array_equal(vectors_of(interpolate(first, second, share)), expected)
    between = interpolate(first, second, 0.25)
    np.testing.assert_allclose(vectors_of(between), 0.75 * vectors_of(first) + 0.25 * vectors_of(second), rtol=1e-6)
    assert (between.base_model, between.base_digest) == (first.base_model, first.base_digest)
    assert between.name == "a 75% b 25%" and between.made_by == {"interpolated": ["a", "b"], "share": 0.25}
    assert len(space.vectors_of(between)) == 2


def test_vectors_of_the_shorter_are_repeated_in_order():
    one, other = (Concept("m", "pocket", np.eye(3, dtype=np.float32)[rows]) for rows in ([0, 1], [2, 2, 2, 2, 2]))
    assert vectors_of(interpolate(one, other, 0)).shape == (2, 3) and len(vectors_of(interpolate(one, other, 1))) == 5
    mixed = vectors_of(interpolate(one, other, 0.5))
    assert np.argmax(mixed[:, :2], axis=1).tolist() == [0, 0, 0, 1, 1] and (mixed[:, 2] == 0.5).all()
    assert np.array_equal(vectors_of(interpolate(other, one, 0.5)), mixed)


@pytest.mark.parametrize(
    ("change", "share", "message"),
    [
        ({}, 1.5, r"the share must be from 0 \(the first concept\) to 1 \(the second\), got 1.5"),
        ({}, float("nan"), "the share must be from 0 .*, got nan"),
        (
            {"base_model": "sam3"},
            0.5,
            r"must be of one model to be mixed, got 'm' for pocket \(3 wide, weights abcdef12",
        ),
        (
            {"base_digest": "fedcba987"},
            0.5,
            r"and 'm' for pocket \(3 wide, weights fedcba98\): teach one of them again",
        ),
        ({"token_embeddings": np.ones((2, 4), np.float32)}, 0.5, r"for pocket \(4 wide, weights abcdef12\)"),
        ({"token_embeddings": None, "thresholds": {"pocket": 0.5}}, 0.5, "'m' holds thresholds alone, no vectors"),
    ],
)
def test_what_cannot_be_mixed_is_told(change, share, message):
    concept = Concept("m", "pocket", np.ones((2, 3), np.float32), base_digest="abcdef1234")
    with pytest.raises(ValueError, match=message):
        interpolate(concept, replace(concept, **change), share)


# --- sensitivity


def test_a_vector_counts_what_is_lost_without_it(tmp_path):
    gallery = phrase_gallery(tmp_path, "red fox")
    concept = concept_of(gallery.space, "red fox green")
    red, fox, green = sensitivity(gallery, concept)
    assert (red.nearest, fox.nearest, green.nearest) == ("red", "fox", "green")
    assert red.left_out_iou == fox.left_out_iou == pytest.approx(1 / 3) and green.left_out_iou == 1
    assert green.replaced_iou == pytest.approx(2 / 3) and red.replaced_iou == pytest.approx(1 / 4)
    assert min(one.gradient_norm for one in (red, fox, green)) > 0


def test_of_a_single_vector_nothing_is_left_out(tmp_path):
    gallery = disk_gallery(tmp_path, 1, tiny_sam3(write_tiny_merges(tmp_path)))
    [only] = sensitivity(gallery, concept_of(gallery.space, "car"))
    assert only.left_out_iou is None and 0 <= only.replaced_iou <= 1 and np.isfinite(only.gradient_norm)


def test_without_a_truth_it_is_agreement_with_the_whole_concept(tmp_path):
    gallery = disk_gallery(tmp_path, 2, tiny_sam3(write_tiny_merges(tmp_path)))
    concept = concept_of(gallery.space, "red red dog")
    own = with_own_answers(gallery, concept)
    vectors = torch.from_numpy(vectors_of(concept))
    assert mean_iou(own.judge(vectors)) == 1 and mean_iou(gallery.judge(vectors)) < 1 and own.truth(1).any()
    assert 0 < min(one.left_out_iou or 0 for one in sensitivity(own, concept)) < 1
    assert [pair.image for pair in own.pairs] == [pair.image for pair in gallery.pairs]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda space, one: similarity(space, [one]), "similarity is of two or more concepts, got 1"),
        (lambda space, one: sensitivity(no_images(space), one), "measured on one or more images, got none"),
        (
            lambda space, one: similarity(space, [one, replace(one, base_digest="other")]),
            "the concept 'mine' was made for pocket with other weights than those of pocket",
        ),
        (
            lambda space, one: sensitivity(no_images(space), replace(one, token_embeddings=np.ones((1, 9)))),
            "with vectors of 9, but those of pocket have 16",
        ),
    ],
)
def test_what_cannot_be_measured_is_told(space, call, message):
    with pytest.raises(ValueError, match=message):
        call(space, concept_of(space, "fox"))
