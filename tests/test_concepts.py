from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from anymask.data.concepts import read_concept, save_concept
from anymask.types import Concept

CONCEPT = Concept("polyp", "pocket", np.arange(6, dtype=np.float32).reshape(2, 3), {"steps": 3}, {"iou": 0.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("concepts")


@given(
    st.text(),
    st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(dtype, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=st.integers(-9, 9))
    ),
    st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_what_is_saved_is_read(folder, name, embeddings, quality):
    concept = Concept(name, "pocket", embeddings, {"words": ["a", None], "seed": 1}, quality)
    save_concept(concept, folder / "x.safetensors")
    back = read_concept(folder / "x.safetensors")
    np.testing.assert_array_equal(back.token_embeddings, embeddings)
    assert back.token_embeddings.dtype == embeddings.dtype
    assert (back.name, back.base_model, back.made_by, back.quality) == (name, "pocket", concept.made_by, quality)


def test_a_slice_of_a_larger_array_is_saved_as_it_is(folder):
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_concept(Concept("x", "pocket", table[1:3, ::2]), folder / "slice.safetensors")
    np.testing.assert_array_equal(read_concept(folder / "slice.safetensors").token_embeddings, table[1:3, ::2])


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{}      "])
def test_a_broken_file_is_named(folder, content):
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.safetensors must be a concept saved by anymask"):
        read_concept(folder / "bad.safetensors")


def test_a_cut_file_is_named(folder):
    save_concept(CONCEPT, folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"cut\.safetensors must be a concept"):
        read_concept(folder / "cut.safetensors")


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"weight": CONCEPT.token_embeddings}, None, "its format must be 'anymask concept 1', got None"),
        ({"token_embeddings": CONCEPT.token_embeddings}, {"format": "anymask concept 1"}, "name"),
        (
            {"token_embeddings": np.zeros(3, np.float32)},
            {"format": "anymask concept 1", "name": "a", "base_model": "b", "made_by": "{}", "quality": "{}"},
            r"must be \(n, d\)",
        ),
        (
            {"token_embeddings": CONCEPT.token_embeddings},
            {"format": "anymask concept 1", "name": "a", "base_model": "b", "made_by": "{", "quality": "{}"},
            "Expecting",
        ),
    ],
)
def test_other_safetensors_are_named(folder, tensors, metadata, message):
    save_file(tensors, folder / "other.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"other\.safetensors must be a concept saved by anymask: .*{message}"):
        read_concept(folder / "other.safetensors")


def test_a_missing_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.safetensors"):
        read_concept(folder / "none.safetensors")


def test_history_that_json_cannot_hold_is_refused(folder):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_concept(
            Concept("x", "pocket", CONCEPT.token_embeddings, {}, {"iou": float("nan")}), folder / "nan.safetensors"
        )
    assert not (folder / "nan.safetensors").exists()


def test_an_interrupted_write_leaves_the_concept_that_was_there(folder, monkeypatch):
    path = folder / "c.safetensors"
    save_concept(Concept("before", "pocket", np.ones((1, 3), np.float32), base_digest="of some weights"), path)

    def cut(self, content):
        self.open("wb").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(KeyboardInterrupt):
            save_concept(Concept("after", "pocket", np.zeros((1, 3), np.float32)), path)
    assert (read_concept(path).name, read_concept(path).base_digest) == ("before", "of some weights")
    assert [one.name for one in folder.iterdir() if one.name.startswith("c.")] == ["c.safetensors"]
