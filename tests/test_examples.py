"""Every example runs, is short, and writes what it says."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert list((tmp_path / "out").rglob("*.png"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""')


def test_the_demo_writes_three_files_for_each_photo_and_prompt(pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES[0].parent / "demo.py"), run_name="__main__")
    written = sorted(path.name for path in tmp_path.iterdir())
    kinds = {"astronaut": "btc", "chelsea": "tc", "coffee": "btc", "rocket": "bc"}
    names = {"b": "box", "t": "text", "c": "click"}
    stems = [f"{photo}-{names[kind]}" for photo, some in kinds.items() for kind in some]
    assert written == sorted(stem + end for stem in stems for end in (".json", ".labelmap.png", ".overlay.png"))
    shown = capsys.readouterr().out
    assert str(tmp_path) in shown
    assert "chelsea" in shown
