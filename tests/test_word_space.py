"""Word spaces: what a model reads in place of words, for every family that knows names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from anymask.adapting.objective import Wanted, judge_image
from anymask.adapting.settings import Objective
from anymask.models import sam3_detector
from anymask.models.load import load
from anymask.models.word_space import word_space_of
from anymask.ops import rle
from anymask.types import Concept, Image, Prompt
from standin import Standin
from tiny import tiny_model
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text, write_tiny_merges

FAMILIES = ("pocket", "sam3", "sam3_lite_text")


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path):
    return _made(request.param, tmp_path)


def _made(family, folder):
    if family == "pocket":
        return tiny_model()
    source = write_tiny_merges(folder)
    return tiny_sam3(source) if family == "sam3" else tiny_sam3_lite_text(source)


def pictures(n: int) -> list[Image]:
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), f"p{i}") for i in range(n)]


@torch.no_grad()
def features_of(model, images):
    pixels = torch.stack([model.preprocess(one, model.frame(one.size)) for one in images])
    return model.words.prepare(model.embed(pixels))


def union_of(answers, row):
    return answers.logits[row, 0]


def test_the_vectors_of_a_phrase_answer_as_the_phrase_does(model):
    [image] = pictures(1)
    answers = model.words.answer(features_of(model, [image]), model.words.vectors("red car"))
    text = model.encode_text([Prompt.text("red car")])
    if model.family == "pocket":
        [found] = model.ground(model.encode([image])[0], replace(text, tensors={**text.tensors, "presence": (0.0,)}))
        torch.testing.assert_close(answers.presence.sigmoid(), torch.tensor([found.presence]), atol=1e-6, rtol=0)
        torch.testing.assert_close(union_of(answers, 0), found.semantic_logits, atol=1e-4, rtol=1e-4)
        return
    with torch.no_grad():
        own = {name: value for name, value in features_of(model, [image]).items() if name.startswith("detector")}
        stock = sam3_detector.detect(model.detector, own, model.frame(image.size), text.tensors["questions"])
    assert torch.equal(answers.logits, stock.pred_masks)
    assert torch.equal(answers.scores, stock.pred_logits)
    assert torch.equal(answers.boxes, stock.pred_boxes)
    assert torch.equal(answers.presence, stock.presence_logits[:, 0])


def test_images_of_a_batch_answer_as_each_alone(model):
    images = pictures(3)
    vectors = model.words.vectors("red car")
    whole = model.words.answer(features_of(model, images), vectors)
    for row, image in enumerate(images):
        alone = model.words.answer(features_of(model, [image]), vectors)
        torch.testing.assert_close(whole.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(whole.scores[row], alone.scores[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_learning_moves_every_vector_and_nothing_else(family, tmp_path):
    """With the shipped pocket; a random model hardly hears words, and its masks are what they are."""
    model = load("pocket") if family == "pocket" else _made(family, tmp_path)
    features = features_of(model, pictures(2))
    vectors = torch.cat([model.words.vectors("red"), model.words.vectors("car")]).requires_grad_(True)
    before = [p.detach().clone() for part in model.words.readers.values() for p in part.parameters()]
    with torch.no_grad():  # what another phrase finds can be learned
        masks = (model.words.answer(features, model.words.vectors("dog")).logits[0, :1] > 0).float()
    box = torch.tensor(rle.boxes(rle.encode(masks.numpy() > 0))[0]) / masks.shape[-1]
    wanted = Wanted(masks, box[None].float())
    optimizer, losses = torch.optim.Adam([vectors], lr=0.2), []
    for _ in range(20):
        answers = model.words.answer(features, vectors)
        loss = judge_image(answers, 0, wanted, model.words.unions, Objective()).loss
        optimizer.zero_grad()
        loss.backward()
        assert (vectors.grad.abs().sum(dim=1) > 0).all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < {"pocket": 0.8, "sam3": 0.97, "sam3_lite_text": 0.94}[family] * losses[0]
    after = [p for part in model.words.readers.values() for p in part.parameters()]
    assert all(p.grad is None and torch.equal(p, was) for p, was in zip(after, before, strict=True))


def test_phrases_are_spelled_and_spoken(model):
    rows = model.words.spell("red car")
    assert model.words.spoken(rows.tolist()) == "red car"
    assert [model.words.pieces[row].strip("</w>") for row in rows.tolist()] == ["red", "car"]
    assert torch.equal(model.words.vectors("red car"), model.words.table[rows])
    with pytest.raises(ValueError, match="must have 1 to .* pieces, got 0 of ' '"):
        model.words.vectors(" ")
    with pytest.raises(ValueError, match="must have 1 to .* pieces, got 60 of"):
        model.words.vectors("red car " * 30)


def test_a_concept_amid_words_stands_where_it_is_named(model):
    words = model.words
    red = Concept("my colour", model.name, words.vectors("red").numpy(), base_digest=words.digest)
    mixed = Prompt.text("a <my colour> car", concepts=[red])
    whole, learned = (model.encode_text([one]) for one in (Prompt.text("a red car"), mixed))
    assert learned.names == ("a my colour car",)
    for one, other in zip(_tokens(whole), _tokens(learned), strict=True):
        assert torch.equal(one, other)
    car = Concept("thing", model.name, words.vectors("car").numpy())
    both, two = model.encode_text([Prompt.text("red car")]), model.encode_text([Prompt.concept(red, car)])
    assert torch.equal(_tokens(both)[0], _tokens(two)[0]) and two.names == ("my colour thing",)


def test_concepts_of_other_weights_are_refused(model):
    vectors, words = model.words.vectors("car").numpy(), model.words
    assert np.array_equal(words.vectors_of(Concept("c", model.name, vectors, base_digest=words.digest)), vectors)
    other = Concept("c", "another", vectors, base_digest="0" * 32)
    with pytest.raises(ValueError, match="'c' was made for another with other weights than those of"):
        model.encode_text([Prompt.concept(other)])
    with pytest.raises(ValueError, match="was made for another with vectors of 3, but those of .* have"):
        model.encode_text([Prompt.concept(Concept("c", "another", np.zeros((1, 3), np.float32)))])
    with pytest.raises(ValueError, match="holds thresholds alone, no vectors"):
        words.vectors_of(Concept("c", "another", thresholds={"another": 0.5}))


def test_a_digest_is_of_the_weights_that_read_vectors(model):
    before = model.words.digest
    fresh = type(model.words)(model)
    assert fresh.digest == before
    with torch.no_grad():
        next(iter(model.words.readers.values())).parameters().__next__().add_(1)
    assert type(model.words)(model).digest != before


def test_vectors_of_half_precision_are_told_by_their_width_alone(tmp_path):
    model = tiny_sam3(write_tiny_merges(tmp_path))
    other = Concept("c", "another", model.words.vectors("car").numpy(), base_digest="0" * 32)
    model.network.bfloat16()
    given = torch.from_numpy(other.token_embeddings)
    assert torch.equal(type(model.words)(model).vectors_of(other), given)
    with pytest.raises(ValueError, match="with vectors of 3, but those of tiny-sam3 have 24"):
        model.words.vectors_of(Concept("c", "another", np.zeros((1, 3), np.float32)))


def test_a_model_without_names_cannot_be_taught():
    with pytest.raises(ValueError, match="standin knows no text, so that it cannot be taught a word"):
        word_space_of(Standin())


def _tokens(text):
    if "tokens" in text.tensors:
        return list(text.tensors["tokens"])
    return [question.tokens for question in text.tensors["questions"]]


def test_a_padded_phrase_is_no_other(model):
    """The vectors of a short phrase answer alike, whatever was asked before."""
    features = features_of(model, pictures(1))
    once = model.words.answer(features, model.words.vectors("car")).logits
    model.words.answer(features, model.words.vectors("red car red car"))
    assert functional.l1_loss(model.words.answer(features, model.words.vectors("car")).logits, once) == 0
