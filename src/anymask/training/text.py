"""Distils a sentence transformer (all-MiniLM-L6-v2) into the pocket model's text tower, on noun phrases.

The student learns the teacher's sentence vectors (1 - cosine) and the similarities between the phrases of a batch,
since comparing is what they are for (relational knowledge distillation, Park et al. 2019, here squared differences).
Its word table begins as the teacher's, reduced by PCA, so that words absent from the phrases still mean something.
"""

import csv
import hashlib
import json
import math
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel

from anymask.models.pocket_text import TEXT_CONFIGS, TextTower, Tokenizer, mean_of_tokens, save_text_tower
from anymask.training.loop import load_checkpoint, save_checkpoint
from anymask.training.phrases import COCO_NAMES, Phrases, build_phrases


@dataclass(frozen=True)
class TextSettings:
    """Everything that decides the result of a distillation."""

    teacher: Path = field(metadata={"help": "folder of the teacher: config.json, model.safetensors and vocab.txt"})
    output: Path = field(metadata={"help": "folder for text.safetensors, curve.csv and the checkpoint to resume from"})
    wordnet: Path | None = field(default=None, metadata={"help": "WordNet's data.noun file, for more nouns"})
    size: str = field(default="pocket", metadata={"help": "name in TEXT_CONFIGS"})
    phrases: int | None = field(default=None, metadata={"help": "keep this many phrases, drawn at random; default all"})
    held_out: float = field(default=0.02, metadata={"help": "fraction of nouns kept out of training, to measure on"})
    epochs: int = field(default=6, metadata={"help": "passes over the phrases"})
    batch_size: int = field(default=512, metadata={"help": "phrases per step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak of the cosine schedule"})
    weight_decay: float = field(default=0.01, metadata={"help": "of matrices, the word table excepted"})
    warmup: float = field(default=0.03, metadata={"help": "fraction of steps in which the learning rate rises"})
    relational_weight: float = field(default=10.0, metadata={"help": "weight of the similarity loss beside 1 - cosine"})
    seed: int = field(default=0, metadata={"help": "of the phrases, the initial weights and the order"})
    device: str = field(default="cpu", metadata={"help": "where teacher and tower run: cpu, cuda, mps"})


@dataclass(frozen=True)
class TextRecord:
    """One line of progress; `phase` is "teacher", "train" or "done" (then `metrics` are of the held-out phrases)."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Corpus:
    """All phrases as tokens, with the teacher's unit vectors (float16, rows in the order of the phrases)."""

    ids: Int[Tensor, "n l"]
    lengths: Int[Tensor, " n"]
    targets: Float[Tensor, "n t"]
    training: Int[Tensor, " m"]
    held_out: Int[Tensor, " k"]

    def batch(self, rows: Int[Tensor, " b"], device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids and mask cut to the longest phrase of the batch, and the teacher's vectors."""
        length = int(self.lengths[rows].max())
        mask = torch.arange(length) < self.lengths[rows, None]
        return self.ids[rows, :length].to(device), mask.to(device), self.targets[rows].to(device).float()


def distill_text(settings: TextSettings) -> Iterator[TextRecord]:
    """Trains a text tower into `settings.output`; run again after an interruption, it goes on from the last epoch."""
    settings.output.mkdir(parents=True, exist_ok=True)
    vocabulary = settings.teacher / "vocab.txt"
    tokenizer = Tokenizer(vocabulary, TEXT_CONFIGS[settings.size].max_tokens)
    phrases = build_phrases(vocabulary, settings.wordnet, settings.held_out, settings.phrases, settings.seed)
    ids, mask = tokenizer(phrases.texts)
    teacher = load_teacher(settings.teacher, settings.device)
    targets = yield from _teacher_vectors(teacher, phrases, ids, mask, settings)
    held_out = torch.from_numpy(phrases.held_out)
    corpus = _Corpus(ids, mask.sum(1), targets, (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0])

    tower = _new_tower(settings)
    initialise_words(tower, teacher)
    yield from _train(tower, corpus, settings)

    metrics = measure_agreement(tower, teacher, tokenizer, corpus.batch(corpus.held_out, settings.device))
    save_text_tower(tower, settings.output / "text.safetensors", _metadata(settings, phrases, metrics))
    yield TextRecord("done", 1, 1, metrics)


def load_teacher(folder: Path, device: str = "cpu") -> nn.Module:
    """The teacher's transformer, frozen, from a local folder."""
    if not (folder / "config.json").is_file():
        needs = "config.json, model.safetensors and vocab.txt"
        raise FileNotFoundError(f"the teacher must be a folder with {needs}, got {folder}")
    teacher: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
    return teacher.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def encode_with_teacher(teacher: nn.Module, ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b t"]:
    """Unit sentence vectors: the mean of the tokens, normalised (the model card of all-MiniLM-L6-v2)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        tokens = teacher(input_ids=ids, attention_mask=mask).last_hidden_state
    return nn.functional.normalize(mean_of_tokens(tokens.float(), mask), dim=-1)


def initialise_words(tower: TextTower, teacher: nn.Module, scale: float = 0.1) -> None:
    """Fills the tower's word table with the principal components of the teacher's; the first deviates by `scale`."""
    table = _word_table(teacher)
    if len(table) != tower.config.vocab_size:
        sizes = f"{len(table)} and {tower.config.vocab_size}"
        raise ValueError(f"teacher and tower must share one vocabulary, got {sizes} words")
    centred = table - table.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # in rising order of variance
    components = centred @ directions.flip(1)[:, : tower.config.width]
    with torch.no_grad():
        tower.transformer.embeddings.word_embeddings.weight.copy_(scale * components / components[:, 0].std())


def distillation_loss(
    student: Float[Tensor, "b t"], teacher: Float[Tensor, "b t"], relational_weight: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss and the mean cosine, for unit vectors of student and teacher."""
    cosine = (student * teacher).sum(-1).mean()
    relational = (student @ student.T - teacher @ teacher.T).square().mean()
    return 1 - cosine + relational_weight * relational, cosine


@torch.inference_mode()
def measure_agreement(
    tower: TextTower, teacher: nn.Module, tokenizer: Tokenizer, batch: tuple[Tensor, Tensor, Tensor]
) -> dict[str, float]:
    """How well student and teacher agree on a batch of phrases.

    `cosine` is the mean between their vectors; `nearest_agreement` how often both choose the same nearest of the 80
    COCO names; `spearman` the mean rank correlation of the similarities to these names.
    """
    ids, mask, targets = batch
    names, names_mask = (tensor.to(ids.device) for tensor in tokenizer(COCO_NAMES))
    student = _in_chunks(tower, ids, mask)
    student_similarity = student @ _in_chunks(tower, names, names_mask).T
    teacher_similarity = targets @ encode_with_teacher(teacher, names, names_mask).T
    same_nearest = student_similarity.argmax(1) == teacher_similarity.argmax(1)
    return {
        "cosine": float((student * targets).sum(-1).mean()),
        "nearest_agreement": float(same_nearest.float().mean()),
        "spearman": float(rank_correlation(student_similarity, teacher_similarity).mean()),
    }


def rank_correlation(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Spearman's correlation of each row of `a` with that row of `b`, for rows without ties."""
    ranks_a, ranks_b = (x.argsort(1).argsort(1).float() for x in (a, b))
    k = a.shape[1]
    return 1 - 6 * (ranks_a - ranks_b).square().sum(1) / (k * (k * k - 1))


def _teacher_vectors(
    teacher: nn.Module, phrases: Phrases, ids: Tensor, mask: Tensor, settings: TextSettings
) -> Generator[TextRecord, None, Tensor]:
    """Returns the float16 vectors of all phrases, from the cache in the output folder if it holds these very ones."""
    digest = hashlib.sha256("\n".join(phrases.texts).encode() + _word_table(teacher).numpy().tobytes()).hexdigest()
    cache, stamp = settings.output / "teacher.npy", settings.output / "teacher.sha256"
    if cache.is_file() and stamp.is_file() and stamp.read_text() == digest:
        return torch.from_numpy(np.load(cache))
    lengths = mask.sum(1)
    vectors = torch.zeros(len(ids), _word_table(teacher).shape[1], dtype=torch.float16)
    chunks = torch.split(lengths.argsort(stable=True), 256)
    for i, rows in enumerate(chunks):
        longest = int(lengths[rows].max())
        batch = (tensor[rows, :longest].to(settings.device) for tensor in (ids, mask))
        vectors[rows] = encode_with_teacher(teacher, *batch).half().cpu()
        yield TextRecord("teacher", i + 1, len(chunks), {})
    np.save(cache, vectors.numpy())
    stamp.write_text(digest)
    return vectors


def _word_table(teacher: nn.Module) -> Tensor:
    """The word embeddings, float32 on the CPU; every BERT of transformers names them so."""
    return teacher.get_parameter("embeddings.word_embeddings.weight").detach().cpu().float()


def _new_tower(settings: TextSettings) -> TextTower:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(settings.seed)
        return TextTower(TEXT_CONFIGS[settings.size]).to(settings.device)


def _train(tower: TextTower, corpus: _Corpus, settings: TextSettings) -> Iterator[TextRecord]:
    optimizer = _optimizer(tower, settings)
    first_epoch = _resume(tower, optimizer, settings)
    steps_per_epoch = math.ceil(len(corpus.training) / settings.batch_size)
    steps = steps_per_epoch * settings.epochs
    for epoch in range(first_epoch, settings.epochs):
        rows: list[dict[str, int | float]] = []
        for i, batch in enumerate(_batches(corpus, settings, epoch)):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step / steps, settings.warmup)
            metrics = _step(tower, optimizer, corpus.batch(batch, settings.device), settings.relational_weight)
            rows.append({"step": step, **metrics})
            yield TextRecord("train", step + 1, steps, metrics)
        _save_checkpoint(tower, optimizer, settings, epoch + 1)
        _append_curve(settings.output / "curve.csv", rows, new=epoch == 0)


def _step(
    tower: TextTower, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor], relational_weight: float
) -> dict[str, float]:
    ids, mask, targets = batch
    with torch.autocast(ids.device.type, torch.bfloat16):
        vectors = tower.sentence_vectors(tower(ids, mask))
    loss, cosine = distillation_loss(vectors.float(), targets, relational_weight)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss.item(), "cosine": cosine.item(), "learning_rate": optimizer.param_groups[0]["lr"]}


def _batches(corpus: _Corpus, settings: TextSettings, epoch: int) -> list[Tensor]:
    """Batches of phrases of like length, in an order that only seed and epoch decide."""
    generator = torch.Generator().manual_seed(settings.seed * 1000 + epoch)
    order = corpus.training[torch.randperm(len(corpus.training), generator=generator)]
    batches: list[Tensor] = []
    for pool in torch.split(order, 32 * settings.batch_size):
        batches += torch.split(pool[corpus.lengths[pool].argsort(stable=True)], settings.batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _optimizer(tower: TextTower, settings: TextSettings) -> torch.optim.Optimizer:
    """AdamW; a short second-moment memory, because with a long one a rare word leaps at its first gradient."""
    words = tower.transformer.embeddings.word_embeddings.weight
    decayed = [p for p in tower.parameters() if p.ndim > 1 and p is not words]
    others = [p for p in tower.parameters() if p.ndim == 1 or p is words]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def _schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate: linear rise, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _resume(tower: TextTower, optimizer: torch.optim.Optimizer, settings: TextSettings) -> int:
    path = settings.output / "checkpoint.pt"
    checkpoint = load_checkpoint(path)
    if checkpoint is None:
        return 0
    if checkpoint["settings"] != _comparable(settings):
        raise ValueError(f"{path} was made with other settings: give the same ones to go on, or another output folder")
    tower.load_state_dict(checkpoint["tower"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return int(checkpoint["epoch"])


def _save_checkpoint(tower: TextTower, optimizer: torch.optim.Optimizer, settings: TextSettings, epoch: int) -> None:
    state: dict[str, Any] = {"tower": tower.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"epoch": epoch, "settings": _comparable(settings)}
    save_checkpoint(settings.output / "checkpoint.pt", state)


def _comparable(settings: TextSettings) -> str:
    values = {
        name: value
        for name, value in asdict(settings).items()
        if name not in ("teacher", "output", "wordnet", "device")
    }
    return json.dumps(values, sort_keys=True)


def _append_curve(path: Path, rows: list[dict[str, int | float]], new: bool) -> None:
    with path.open("w" if new else "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _in_chunks(tower: TextTower, ids: Tensor, mask: Tensor) -> Tensor:
    pairs = zip(torch.split(ids, 1024), torch.split(mask, 1024), strict=True)
    return torch.cat([tower.sentence_vectors(tower(some_ids, some_mask)) for some_ids, some_mask in pairs])


def _metadata(settings: TextSettings, phrases: Phrases, metrics: dict[str, float]) -> dict[str, str]:
    counts = {"phrases": len(phrases.texts), "held_out_phrases": int(phrases.held_out.sum())}
    training = {**json.loads(_comparable(settings)), **counts}
    weights = hashlib.sha256((settings.teacher / "model.safetensors").read_bytes()).hexdigest()
    return {
        "teacher": f"{settings.teacher.name}, model.safetensors sha256 {weights}",
        "training": json.dumps(training),
        "measured": json.dumps(metrics),
    }
