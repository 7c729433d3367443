"""What SAM 3 reads: names as word pieces, learned concepts as vectors in their place, through its text transformer.

The tokenizer is CLIP's. It is looked for beside the weights and in the package open_clip; nothing is fetched.
"""

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTokenizer

from anymask.models.protocol import CheckpointError

LENGTH = 32  # word pieces of a name with its marks, as in the original (`VETextEncoder.context_length`)
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's vocabulary, as the original repository and open_clip keep it
PIECES = 49152 - 256 - 2  # merges of that file which CLIP uses
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def read_tokenizer(weights: Path, family: str = "SAM 3", hub_id: str = "facebook/sam3") -> Any:
    """The tokenizer in a model's folder, or beside a file, or of open_clip; else a CheckpointError says what to do."""
    folder = weights if weights.is_dir() else weights.parent
    try:
        if _is_saved(folder):
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        for merges in (folder / MERGES, *_of_open_clip()):
            if merges.is_file():
                return tokenizer_of(merges)
    except (ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be read ({error}): fetch it again") from error
    raise CheckpointError(
        f"{family} without tokenizer: to name things or show exemplars, put tokenizer.json of {hub_id}, or {MERGES}"
        f" of the original repository, into {folder}, or pip install open_clip_torch"
    )


def tokenizer_of(merges: Path) -> Any:
    """CLIP's tokenizer from its file of merges: 256 bytes, each also at the end of a word, then merges, then marks."""
    with gzip.open(merges, "rt", encoding="utf-8") as file:
        pairs = [tuple(line.split()) for line in file.read().split("\n")[1 : PIECES + 1] if line.strip()]
    letters = _letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs), BEGIN, END]
    rules: Any = pairs  # transformers types these as text, its tokenizer takes pairs
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=rules)


def word_pieces(tokenizer: Any, names: Sequence[str]) -> tuple[Int[Tensor, "n 32"], list[int]]:
    """Ids, and how many of each name count, its marks among them; a longer name is cut, its end mark stays."""
    found = tokenizer(
        list(names), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )  # padded always: the light text transformer of LiteText reads padding too
    return found["input_ids"], found["attention_mask"].sum(1).tolist()


def encode_words(
    detector: Any,
    ids: Int[Tensor, "n 32"],
    lengths: Sequence[int],
    learned: Sequence[Float[Tensor, "_ width"] | None],
) -> list[Float[Tensor, "_ d"]]:
    """The tokens that count of each text; `learned` vectors stand after its first mark. Differentiable in them."""
    table, thread = token_embedding(detector), get_ident()
    vectors = table(ids)
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    for row, own in enumerate(learned):
        if own is not None:
            vectors = torch.cat([vectors[:row], _placed(vectors[row], own)[None], vectors[row + 1 :]])

    def instead(*_: Any) -> Tensor | None:
        return vectors if get_ident() == thread else None

    handle = table.register_forward_hook(instead)
    try:
        states = detector.text_encoder(input_ids=ids, attention_mask=mask.long().to(ids.device)).last_hidden_state
    finally:
        handle.remove()
    tokens = detector.text_projection(states)
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def token_embedding(detector: Any) -> nn.Embedding:
    """The vectors of the word pieces, of CLIP's text transformer or of the light one."""
    encoder = detector.text_encoder
    table: nn.Embedding = getattr(encoder, "text_model", encoder).embeddings.token_embedding
    return table


def blank_pieces(tokenizer: Any, length: int) -> tuple[Int[Tensor, "1 32"], list[int]]:
    """As `word_pieces` of one text, of `length` vectors yet to be placed between the marks of beginning and end."""
    if not 1 <= length <= LENGTH - 2:
        raise ValueError(f"a concept for SAM 3 must have 1 to {LENGTH - 2} vectors, got {length}")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    padding = [tokenizer.pad_token_id] * (LENGTH - 2 - length)
    return torch.tensor([[begin, *[begin] * length, end, *padding]]), [length + 2]


def _is_saved(folder: Path) -> bool:
    """Whether transformers has saved a tokenizer in the folder."""
    return (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))


def _placed(vectors: Tensor, own: Tensor) -> Tensor:
    return torch.cat([vectors[:1], own.to(vectors), vectors[1 + len(own) :]])


def _of_open_clip() -> list[Path]:
    found = find_spec("open_clip")
    return [Path(place) / MERGES for place in found.submodule_search_locations or ()] if found else []


def _letters() -> list[str]:
    """A character to show each byte by: its own if it has one, else one from 256 on (GPT-2, `bytes_to_unicode`)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len([byte for byte in range(256) if byte not in own])
    return [chr(byte) for byte in (*own, *range(256, 256 + others))]
