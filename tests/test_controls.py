"""Controls of a case study: what they are made of, and that they are judged as the embedding is."""

import pytest
import torch

from anymask.adapting.controls import (
    Embedding,
    judge_controls,
    judged,
    mean_embedding,
    random_vectors,
)
from anymask.adapting.judging import Gallery
from anymask.data.pairs import read_pairs
from anymask.models.word_space import word_space_of
from anymask.training.caching import FeatureStore
from standin import write_disks
from tiny import tiny_model


@pytest.fixture(scope="module")
def space():
    return word_space_of(tiny_model())


@pytest.fixture(scope="module")
def gallery(space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    images, masks = write_disks(folder, 3)
    store = FeatureStore(space.model, folder / "features", 100, names=space.feature_names)
    return Gallery(space, read_pairs(images, masks).rows, store)


def test_random_vectors_have_the_norms_of_the_table(space):
    draws = random_vectors(space, 50, 4, seed=1)
    assert [tuple(one.shape) for one in draws] == [(50, space.width)] * 4
    usual = space.table.square().sum(dim=1).mean().sqrt()
    assert torch.cat(draws).square().sum(dim=1).mean().sqrt() == pytest.approx(float(usual), rel=0.05)
    assert not torch.equal(draws[0], draws[1])
    assert all(map(torch.equal, draws, random_vectors(space, 50, 4, seed=1)))
    assert not torch.equal(draws[0], random_vectors(space, 50, 1, seed=2)[0])


def test_the_mean_embedding_is_taken_vector_by_vector():
    one, two, three = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0], [5.0, 7.0]]), torch.tensor([[8.0, 1.0]] * 2)
    assert mean_embedding([one, two, three]).tolist() == [[4.0, 3.0], [6.5, 4.0]]
    assert mean_embedding([two]).tolist() == two.tolist()


def test_several_phrases_are_judged_image_by_image(space, gallery):
    phrases = [space.vectors("a red dog"), space.vectors("disk")]
    found = judged(gallery, phrases)
    assert found.names == ("00", "01", "02")
    assert found.ious.shape == found.scores.shape == (2, 3)
    for row, vectors in enumerate(phrases):
        assert found.ious[row].tolist() == [one.iou for one in gallery.judge(vectors)]
        assert found.scores[row] == pytest.approx([one.score for one in gallery.judge(vectors)])
    assert found.scores[0].tolist() != found.scores[1].tolist()


def test_every_control_is_judged_on_the_held_out_images(space, gallery):
    starts, ends = torch.randn(2, 3, space.width), torch.randn(2, 3, space.width)
    runs = [Embedding(start, end) for start, end in zip(starts, ends, strict=True)]
    found = judge_controls(gallery, "dog", "a red disk", runs, [ends[0]], draws=4, seed=5)
    expected = {
        "seed phrase": [space.vectors("dog")],
        "best phrase": [space.vectors("a red disk")],
        "random vectors": random_vectors(space, 3, 4, seed=5),
        "initialiser": list(starts),
        "mean embedding": [ends[0]],
    }
    assert list(found) == list(expected)
    for name, vectors in expected.items():
        assert found[name].ious.tolist() == judged(gallery, vectors).ious.tolist(), name
        assert found[name].scores == pytest.approx(judged(gallery, vectors).scores), name


def test_a_single_class_has_no_mean_embedding(space, gallery):
    vectors = space.vectors("dog")
    found = judge_controls(gallery, "dog", "dog", [Embedding(vectors, vectors)], [], draws=1)
    assert "mean embedding" not in found
