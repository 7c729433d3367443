"""The pocket model's text tower, its tokenizer, and its distillation from a tiny random teacher."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel, BertTokenizer

import anymask
from anymask.models.pocket_text import (
    TEXT_CONFIGS,
    TextTower,
    Tokenizer,
    load_text_tower,
    mean_of_tokens,
    save_text_tower,
)
from anymask.training.phrases import COCO_NAMES, EVERYDAY_NAMES, build_phrases, plural, vocabulary_words, wordnet_nouns
from anymask.training.text import (
    TextRecord,
    TextSettings,
    distill_text,
    distillation_loss,
    initialise_words,
    load_teacher,
    rank_correlation,
)

TINY = TEXT_CONFIGS["tiny"]
SHIPPED_VOCABULARY = Path(anymask.__path__[0]) / "weights" / "pocket" / "vocab.txt"


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(TINY).eval()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random transformer and a vocabulary of letters and a few words."""
    folder = tmp_path_factory.mktemp("teacher")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted({word for name in EVERYDAY_NAMES for word in name.split() if word.isalpha() and len(word) > 2})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(pieces[: TINY.vocab_size]) + "\n")
    torch.manual_seed(1)
    sizes = BertConfig(
        vocab_size=TINY.vocab_size, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(teacher: Path, tmp_path: Path) -> TextSettings:
    return TextSettings(teacher, tmp_path / "run", size="tiny", phrases=400, held_out=0.2, epochs=3, batch_size=32)


def train(settings: TextSettings) -> list[TextRecord]:
    return list(distill_text(settings))


# The tower


def test_word_embeddings_then_transformer_equals_the_full_path(tower: TextTower) -> None:
    ids, mask = torch.randint(0, 120, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    whole, staged = tower(ids, mask), tower.encode_embeddings(tower.token_embeddings(ids), mask)
    assert torch.equal(whole.tokens, staged.tokens)
    assert tower.token_embeddings(ids).shape == (3, 7, TINY.width)
    torch.testing.assert_close(whole.tokens, tower.transformer(tower.token_embeddings(ids), mask))


def test_padding_changes_nothing(tower: TextTower) -> None:
    ids = torch.randint(0, 120, (1, 5))
    padded = torch.cat([ids, torch.randint(0, 120, (1, 4))], 1)
    alone = tower(ids, torch.ones(1, 5, dtype=torch.bool))
    beside = tower(padded, torch.arange(9)[None] < 5)
    torch.testing.assert_close(alone.tokens, beside.tokens[:, :5])
    torch.testing.assert_close(alone.pooled, beside.pooled)
    everything = tower(padded, torch.ones(1, 9, dtype=torch.bool))
    assert not torch.allclose(alone.pooled, everything.pooled)


def test_mean_of_tokens_equals_a_loop() -> None:
    tokens, mask = torch.randn(4, 6, 3), torch.arange(6)[None] < torch.tensor([6, 1, 3, 2])[:, None]
    expected = torch.stack([tokens[i, : int(mask[i].sum())].mean(0) for i in range(4)])
    torch.testing.assert_close(mean_of_tokens(tokens, mask), expected)


def test_gradients_reach_injected_embeddings(tower: TextTower) -> None:
    tower.requires_grad_(False)
    embeddings = tower.token_embeddings(torch.randint(0, 120, (1, 5))).requires_grad_()
    tower.encode_embeddings(embeddings, torch.ones(1, 5, dtype=torch.bool)).pooled.square().sum().backward()
    assert embeddings.grad is not None and bool((embeddings.grad.abs().sum(-1) > 0).all())


def test_too_many_tokens_are_refused(tower: TextTower) -> None:
    with pytest.raises(ValueError, match="at most 12 tokens, got 13: shorten the text"):
        tower(torch.zeros(1, 13, dtype=torch.long), torch.ones(1, 13, dtype=torch.bool))


def test_saved_and_loaded_is_the_same_at_half_precision(tower: TextTower, tmp_path: Path) -> None:
    save_text_tower(tower, tmp_path / "text.safetensors", {"note": "tiny"})
    loaded = load_text_tower(tmp_path / "text.safetensors")
    assert loaded.config == TINY
    for name, tensor in tower.half().float().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_shipped_size_fits_into_ten_megabytes() -> None:
    with torch.device("meta"):
        tower = TextTower(TEXT_CONFIGS["pocket"])
    assert 2 * sum(tensor.numel() for tensor in tower.state_dict().values()) < 10e6


# The tokenizer


def test_tokenizer_equals_that_of_transformers() -> None:
    texts = [
        "a red car",
        "Two small DOGS, on the left!",
        "Café crème",
        "t-shirt",
        "skateboarder's",
        "狗",
        "",
        "x " * 50,
    ]
    reference = BertTokenizer(str(SHIPPED_VOCABULARY))
    expected = reference(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    ids, mask = Tokenizer(SHIPPED_VOCABULARY)(texts)
    assert ids.shape == (8, 32)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"].bool())


def test_tokenizer_pads_to_the_longest() -> None:
    ids, mask = Tokenizer(SHIPPED_VOCABULARY)(["dog", "a red car"])
    assert ids.tolist() == [[101, 3899, 102, 0, 0], [101, 1037, 2417, 2482, 102]]
    assert mask.sum(1).tolist() == [3, 5]


def test_tokenizer_refuses_what_is_no_list_of_phrases(tmp_path: Path) -> None:
    tokenizer = Tokenizer(SHIPPED_VOCABULARY)
    for texts in ("dog", []):
        with pytest.raises(ValueError, match=r"texts must be a list of one or more phrases"):
            tokenizer(texts)
    with pytest.raises(FileNotFoundError, match="one word piece a line"):
        Tokenizer(tmp_path / "none.txt")


# The phrases


def test_phrases_are_unique_and_hold_out_whole_nouns(teacher: Path) -> None:
    phrases = build_phrases(teacher / "vocab.txt", held_out_fraction=0.1)
    assert len(set(phrases.texts)) == len(phrases.texts) == len(phrases.held_out) > 100_000
    assert 0.05 < phrases.held_out.mean() < 0.15
    held_out = dict(zip(phrases.texts, phrases.held_out, strict=True))
    assert not any(held_out[name] for name in COCO_NAMES)
    pairs = [(held_out[text], held_out["the " + text]) for text in phrases.texts if "the " + text in held_out]
    apart = sum(alone != templated for alone, templated in pairs)  # "the striped bass" may come from "bass" as well
    assert len(pairs) > 1000 and sum(alone and templated for alone, templated in pairs) > 50
    assert apart < 0.01 * len(pairs)


def test_phrases_follow_the_seed_and_the_limit(teacher: Path) -> None:
    first, again, other = (build_phrases(teacher / "vocab.txt", limit=50, seed=seed) for seed in (3, 3, 4))
    assert len(first.texts) == 50
    assert first.texts == again.texts != other.texts


def test_wordnet_gives_physical_common_nouns(tmp_path: Path) -> None:
    file = tmp_path / "data.noun"
    file.write_text(
        "  1 This software and database is being provided\n"
        "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 023 @ 02083346 n 0000 | a member\n"
        "05809192 09 n 01 cognition 0 002 @ 00023100 n 0000 | the psychological result\n"
    )
    assert wordnet_nouns(file) == ["dog", "domestic dog"]
    assert wordnet_nouns(None) == []


def test_vocabulary_words_are_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n##ing\nox\ncar\n1990\ncafé\ndog\n", encoding="utf-8")
    assert vocabulary_words(file) == ["car", "dog"]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("car", "cars"), ("bus", "buses"), ("cherry", "cherries"), ("toy", "toys"), ("wine glass", "wine glasses"),
     ("person", "people"), ("computer mouse", "computer mice"), ("scissors", "scissors"), ("bench", "benches")],
)  # fmt: skip
def test_plural(noun: str, expected: str) -> None:
    assert plural(noun) == expected


# The distillation


def test_the_loss_is_cosine_plus_similarities() -> None:
    student, teacher = (torch.nn.functional.normalize(torch.randn(5, 4), dim=1) for _ in range(2))
    cosine = sum(float(student[i] @ teacher[i]) for i in range(5)) / 5
    pairs = [(float(student[i] @ student[j]) - float(teacher[i] @ teacher[j])) ** 2 for i in range(5) for j in range(5)]
    loss, measured_cosine = distillation_loss(student, teacher, relational_weight=3.0)
    assert float(measured_cosine) == pytest.approx(cosine, abs=1e-6)
    assert float(loss) == pytest.approx(1 - cosine + 3 * sum(pairs) / 25, abs=1e-6)


def test_rank_correlation_equals_scipy() -> None:
    a, b = torch.randn(4, 9), torch.randn(4, 9)
    expected = [spearmanr(a[i].numpy(), b[i].numpy()).statistic for i in range(4)]
    np.testing.assert_allclose(rank_correlation(a, b).numpy(), expected, atol=1e-6)


def test_words_begin_as_the_principal_components_of_the_teachers(teacher: Path, tower: TextTower) -> None:
    model = load_teacher(teacher)
    initialise_words(tower, model, scale=0.1)
    table = tower.transformer.embeddings.word_embeddings.weight.detach()
    source = model.get_parameter("embeddings.word_embeddings.weight")
    left, values, _ = torch.linalg.svd(source - source.mean(0), full_matrices=False)
    expected = left[:, : TINY.width] * values[: TINY.width]
    expected = expected * 0.1 / expected[:, 0].std()
    torch.testing.assert_close(table.abs(), expected.abs(), atol=1e-4, rtol=1e-3)
    assert float(table[:, 0].std()) == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ValueError, match="must share one vocabulary, got 120 and 121 words"):
        initialise_words(TextTower(replace(TINY, vocab_size=121)), model)


def test_distillation_learns_and_writes_the_tower(settings: TextSettings) -> None:
    records = train(settings)
    losses = [record.metrics["loss"] for record in records if record.phase == "train"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert records[0].phase == "teacher" and records[-1].phase == "done"
    assert set(records[-1].metrics) == {"cosine", "nearest_agreement", "spearman"}
    assert load_text_tower(settings.output / "text.safetensors").config == TINY
    curve = (settings.output / "curve.csv").read_text().splitlines()
    assert curve[0] == "step,loss,cosine,learning_rate" and len(curve) == 1 + len(losses)


def test_resumed_equals_uninterrupted(settings: TextSettings) -> None:
    whole = train(settings)
    other = replace(settings, output=settings.output.with_name("interrupted"))
    steps = [record for record in whole if record.phase != "done"]
    for _ in islice(distill_text(other), len(steps) - 4):  # somewhere in the last epoch
        pass
    resumed = train(other)
    assert 4 < len(resumed) < len(whole)
    assert resumed[-1].metrics == whole[-1].metrics
    a, b = (load_text_tower(folder / "text.safetensors").state_dict() for folder in (settings.output, other.output))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (settings.output / "curve.csv").read_text() == (other.output / "curve.csv").read_text()


def test_resuming_with_other_settings_is_refused(settings: TextSettings) -> None:
    train(replace(settings, epochs=1))
    with pytest.raises(ValueError, match="was made with other settings"):
        train(replace(settings, epochs=1, learning_rate=1e-4))


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must be a folder with config\.json"):
        load_teacher(tmp_path / "nowhere")
