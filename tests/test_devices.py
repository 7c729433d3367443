"""Devices, number formats and memory that runs out, with stand-ins for the devices that are not here."""

import logging

import pytest
import torch

from anymask.models.devices import in_chunks, memory_for, pick_device, pick_dtype


@pytest.fixture
def machine(monkeypatch):
    """A machine with these devices."""

    def be(*, cuda: int = 0, mps: bool = False, brain: bool = True) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: cuda)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: brain)

    return be


def test_auto_takes_the_best_device(machine):
    machine(cuda=2, mps=True)
    assert pick_device() == "cuda"
    machine(mps=True)
    assert pick_device() == "mps"
    machine()
    assert pick_device() == "cpu"


def test_a_device_can_be_numbered(machine):
    machine(cuda=2)
    assert pick_device("cuda:1") == "cuda:1"
    for wrong in ("cuda:2", "cuda:x", "cuda:"):
        with pytest.raises(ValueError, match=f"device must be one of auto, cuda:0, cuda:1, cpu here, got {wrong}"):
            pick_device(wrong)


@pytest.mark.parametrize("name", ["cuda", "mps", "gpu", ""])
def test_a_device_that_is_not_here(name, machine):
    machine()
    with pytest.raises(ValueError, match=f"device must be one of auto, cpu here, got {name}"):
        pick_device(name)


@pytest.mark.parametrize(
    ("dtype", "device", "brain", "used", "told"),
    [
        (None, "cuda", True, torch.float32, ""),
        ("auto", "cpu", True, torch.float32, ""),
        ("auto", "cuda:0", True, torch.bfloat16, ""),
        ("auto", "cuda", False, torch.float16, ""),
        ("auto", "mps", True, torch.float16, ""),
        ("bfloat16", "cpu", True, torch.bfloat16, ""),
        (torch.float16, "cuda", True, torch.float16, ""),
        ("float16", "cpu", True, torch.float32, "cpu cannot compute in float16: using float32"),
        ("bfloat16", "cuda", False, torch.float16, "cuda cannot compute in bfloat16: using float16"),
        (torch.bfloat16, "mps", True, torch.float16, "mps cannot compute in bfloat16: using float16"),
    ],
)
def test_a_number_format_falls_back_and_says_so(dtype, device, brain, used, told, machine, caplog):
    machine(cuda=1, mps=True, brain=brain)
    assert pick_dtype(dtype, device) == used
    assert caplog.messages == ([told] if told else [])


@pytest.mark.parametrize("wrong", ["half", torch.int8])
def test_an_unknown_number_format(wrong):
    with pytest.raises(ValueError, match=f"dtype must be auto, float32, bfloat16, float16, got {wrong}"):
        pick_dtype(wrong, "cpu")


def test_rows_run_in_chunks():
    assert in_chunks(list, range(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert in_chunks(list, [], 3) == []


def test_less_at_a_time_where_memory_ends(caplog):
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return list(rows)

    with caplog.at_level(logging.WARNING):
        assert in_chunks(run, range(20), 16) == [
            [0, 1],
            [2, 3],
            [4, 5],
            [6, 7],
            [8, 9],
            [10, 11],
            [12, 13],
            [14, 15],
            [16, 17],
            [18, 19],
        ]
    assert tried == [16, 8, 4, *[2] * 10]
    assert caplog.messages[-1] == "out of memory on cpu: going on with 2 prompts at a time"


def test_half_of_what_was_there_is_tried_not_half_of_what_was_allowed():
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")

    in_chunks(run, range(2), 16)
    assert tried == [2, 1, 1]


def test_not_even_one_fits():
    def run(rows):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(MemoryError, match="mps has too little memory to answer a single prompt: close other programs"):
        in_chunks(run, range(4), 2, "mps")
    with pytest.raises(MemoryError, match="too little memory to answer a single prompt"):
        in_chunks(run, range(1), 16)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
)
def test_every_device_says_in_its_own_way_that_memory_ends(error):
    def run(rows):
        if len(rows) > 1:
            raise error
        return rows[0]

    assert in_chunks(run, range(3), 3) == [0, 1, 2]
    with pytest.raises(MemoryError, match="cpu has too little memory to think"), memory_for("think", "cpu"):
        raise error


def test_another_error_is_not_taken_for_too_little_memory():
    def run(rows):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_chunks(run, range(4), 2)
    with pytest.raises(RuntimeError, match="shapes differ"), memory_for("think", "cpu"):
        raise RuntimeError("shapes differ")
