import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from anymask.data.files import read_json, write_json, write_whole, write_whole_folder


def test_a_file_appears_whole_in_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    with write_whole(path) as temporary:
        temporary.write_text("1")
        assert temporary.parent == path.parent
        assert temporary.suffix == ".json"
        assert temporary.name.startswith(".")
        assert not path.exists()
    assert path.read_text() == "1"
    assert os.listdir(path.parent) == ["c.json"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with write_whole(tmp_path / "whole") as temporary:
        temporary.write_text("")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), write_whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        expected = pytest.raises(OSError, match=r"cannot write .*big\.bin: File too large")
        with expected as caught, write_whole(tmp_path / "big.bin") as temporary:
            temporary.write_bytes(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


def test_an_error_without_a_number_is_named_too(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*x\.png: encoder error -2"), write_whole(tmp_path / "x.png"):
        raise OSError("encoder error -2")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/x\.json"):
        write_json(tmp_path / "file" / "x.json", 1)


@pytest.mark.parametrize(("replace", "left"), [(False, ["new", "old"]), (True, ["new"])])
def test_a_folder_joins_the_one_before_or_replaces_it(tmp_path, replace, left):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with write_whole_folder(target, replace) as temporary:
            (temporary / name).touch()
    assert sorted(os.listdir(target)) == left
    with pytest.raises(OSError, match=r"cannot write .*/folder: disk"), write_whole_folder(target, replace):
        raise OSError("disk")
    assert sorted(os.listdir(target)) == left
    assert os.listdir(tmp_path) == ["folder"]


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nothing can be written; root may write everywhere, and steps down for the test."""
    tmp_path.chmod(0o500)
    before = os.geteuid()
    if before == 0:
        try:
            os.seteuid(65534)
        except OSError as error:
            pytest.skip(f"root cannot step down here ({error}), and may write everywhere")
    yield tmp_path
    os.seteuid(before)


def test_a_read_only_folder_is_named(read_only):
    with pytest.raises(PermissionError, match=r"cannot write .*x\.json: Permission denied"):
        write_json(read_only / "x.json", 1)


def test_a_folder_in_the_way_is_named_and_left_alone(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*x\.json"):
        write_json(tmp_path / "x.json", 1)
    assert os.listdir(tmp_path) == ["x.json"]


def test_json_holds_numpy_values_and_paths(tmp_path):
    value = {"a": np.int64(3), "b": np.float32(0.5), "c": np.arange(3), "d": Path("x") / "y", "e": "ü"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == {"a": 3, "b": 0.5, "c": [0, 1, 2], "d": str(Path("x") / "y"), "e": "ü"}


def test_json_is_standard_or_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    with pytest.raises(TypeError, match="cannot write set as JSON"):
        write_json(tmp_path / "x.json", {1})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json must be JSON"):
        read_json(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*x\.json"):
        read_json(tmp_path / "x.json")


def test_json_is_json(tmp_path):
    write_json(tmp_path / "x.json", [1, {"a": None}], indent=1)
    assert json.loads((tmp_path / "x.json").read_text()) == [1, {"a": None}]
