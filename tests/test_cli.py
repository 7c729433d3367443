"""The command line through main: finding commands, evaluate, train, models, doctor, and flags made of dataclasses."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import anymask
from anymask.cli import doctor
from anymask.cli.commands import one_line, table
from anymask.cli.flags import add_settings, read_settings
from anymask.cli.main import COMMANDS, main
from anymask.cli.progress import Progress
from anymask.models.load import CATALOGUE
from oracles import write_set

NAMES = [" ".join(name) for name in COMMANDS]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# --- finding a command


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_and_explains_every_flag(name, capsys):
    code, out, err = run(capsys, *name.split(), "--help")
    assert (code, err) == (0, "")
    assert f"anymask {name}" in out.split("examples:")[1]
    assert "--json" in out
    assert "--debug" in out


def test_the_overview_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in NAMES)
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "segment" in err
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    assert "train pocket" in out
    assert "segment" not in out.replace("Segment Anything", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segmnt"], "anymask: unknown command 'segmnt': did you mean segment? (see anymask --help)"),
        (["train", "pockt"], "anymask train: unknown command 'pockt': did you mean pocket? (see anymask train --help)"),
        (
            ["evaluate", "x"],
            "anymask evaluate: unknown command 'x': the commands are promptable, text (see anymask evaluate --help)",
        ),
    ],
)
def test_an_unknown_command_gets_the_nearest(words, message, capsys):
    assert run(capsys, *words) == (2, "", message + "\n")


def test_the_version(capsys):
    assert run(capsys, "--version") == (0, f"anymask {anymask.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["segment", "--help"], ["everything", "--help"], ["models", "--help"], ["segment", "x.jpg"]]
)
def test_help_and_wrong_use_load_no_torch(words):
    code = (
        f"import sys; from anymask.cli.main import main; main({words}); print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "False"


def test_python_m_anymask_and_a_closed_pipe():
    done = subprocess.run([sys.executable, "-m", "anymask", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"anymask {anymask.__version__}\n", "")
    closed = ["sh", "-c", f"exec {sys.executable} -m anymask --help >&-"]
    assert subprocess.run(closed, capture_output=True, text=True, check=False).stderr == ""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "anymask", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# --- evaluate

WANTED = ["click1_miou", "click3_miou", "click5_miou", "noc80", "noc85", "box_miou", "box_boundary_iou", "text_miou"]
WANTED += ["text_false_positive_rate", "encode_ms", "click_ms", "peak_rss_mb", "images", "masks"]


@pytest.fixture
def labelled(tmp_path) -> list[str]:
    """The flags that name a small set."""
    return ["--images", str(tmp_path), "--annotations", str(write_set(tmp_path))]


def test_evaluate_gives_a_flat_object(pocket, labelled, tmp_path, capsys):
    report = tmp_path / "report.json"
    words = [
        "evaluate",
        "promptable",
        *labelled,
        "--model",
        "pocket",
        "--limit",
        "3",
        "--noc-clicks",
        "5",
        "-o",
        str(report),
    ]
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(WANTED) <= set(found)
    assert {f"{name}_unseen" for name in WANTED if name != "peak_rss_mb"} <= set(found)
    assert found["images"] + found["images_unseen"] == 3
    assert {row["source"] for row in found["sources"]} == {"farm", "zoo", "wild"}
    assert json.loads(report.read_text()) == found


def test_evaluate_shows_a_table(pocket, labelled, capsys):
    code, out, _ = run(capsys, "evaluate", "promptable", *labelled, "--no-text", "--noc-clicks", "0", "--limit", "1")
    assert code == 0
    assert "box_miou" in out.replace(" ", "_")


def test_evaluate_refuses_before_the_work(pocket, labelled, tmp_path, capsys):
    def problem(*words: str) -> str:
        code, out, err = run(capsys, "evaluate", "promptable", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("anymask evaluate promptable: ").rstrip("\n")

    assert problem(*labelled, "-o", str(tmp_path)).startswith("-o must be the name of a JSON file, got the folder ")
    nowhere = tmp_path / "nowhere"
    assert (
        problem(*labelled, "-o", str(nowhere / "r.json")) == f"no such folder: {nowhere}: make it, or give another -o"
    )
    assert problem("--images", str(tmp_path), "--annotations", str(nowhere)) == f"no such file: {nowhere}"
    assert problem(*labelled, "--clicks", "0") == "clicks must be at least 1, got 0"
    assert problem("--images", "x") == (
        "the following arguments are required: --annotations (see anymask evaluate promptable --help)"
    )


def test_an_interrupted_evaluation_writes_nothing(pocket, labelled, tmp_path, monkeypatch, capsys):
    def interrupted(model, settings):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("anymask.evaluation.promptable.evaluate_promptable", interrupted)
    code, _, err = run(capsys, "evaluate", "promptable", *labelled, "-o", str(tmp_path / "report.json"))
    assert (code, err) == (130, "anymask evaluate promptable: interrupted after 0 images: no report was written\n")
    assert not (tmp_path / "report.json").exists()


# --- train


@pytest.fixture
def training(pocket, labelled, tmp_path) -> list[str]:
    """A training of two steps of the tiny network."""
    tiny = ["--size", "tiny", "--side", "64", "--steps", "2", "--batch", "1", "--workers", "0", "--text", str(pocket)]
    return ["train", "pocket", *labelled, "-o", str(tmp_path / "run"), *tiny]


def test_train_makes_a_model_that_segments(training, tmp_path, capsys):
    code, out, _ = run(capsys, *training, "--resume", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["weights"] == str(tmp_path / "run" / "pocket.safetensors")
    assert found["step"] == 2
    assert "loss" in found["metrics"]
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["steps"], settings["size"]) == (2, "tiny")
    code, out, _ = run(capsys, "segment", str(tmp_path / "1.png"), "--point", "5,5", "-m", found["weights"], "--json")
    assert code == 0
    assert len(json.loads(out)[0]["masks"]) == 1


def test_train_goes_on_only_when_told_to(training, tmp_path, capsys):
    assert run(capsys, *training)[0] == 0
    code, _, err = run(capsys, *training)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    told = "is of an earlier run: add --resume to go on with it, or give another -o"
    assert (code, err) == (2, f"anymask train pocket: {checkpoint} {told}\n")
    code, out, _ = run(capsys, *training[:-4], *training[-2:], "--workers", "0", "--steps", "3", "--resume", "--json")
    assert (code, json.loads(out)["step"]) == (0, 3)


def test_an_interrupted_training_says_how_to_go_on(training, tmp_path, monkeypatch, capsys):
    def interrupted(settings):
        (settings.output / "checkpoint.pt").touch()
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("anymask.training.pocket.train_pocket", interrupted)
    code, _, err = run(capsys, *training)
    kept = f"{tmp_path / 'run' / 'checkpoint.pt'} is kept; run the same command with --resume to go on"
    assert (code, err) == (130, f"anymask train pocket: interrupted at step 0: {kept}\n")


def test_train_text_asks_for_its_teacher(tmp_path, capsys):
    code, _, err = run(capsys, "train", "text", "--teacher", str(tmp_path / "none"), "-o", str(tmp_path / "run"))
    assert code == 2
    assert err.startswith("anymask train text: ")
    assert err.count("\n") == 1


# --- models and doctor


def test_models_are_listed(pocket, capsys):
    code, out, _ = run(capsys, "models", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows if row["kind"] == "model"] == list(CATALOGUE)
    assert rows[0]["installed"] is True
    assert {"points", "boxes", "masks", "text"} <= set(rows[0]["prompts"])


def test_doctor_finds_nothing_wrong(pocket, capsys):
    code, out, err = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert (code, err, found["problems"]) == (0, "", [])
    assert found["models"]["pocket"]["loads"] is True
    assert found["packages"]["torch"]["required"] is True
    assert found["packages"]["supervision"]["required"] is False
    assert "pytest" not in found["packages"]
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert out.endswith("\nNothing is missing.\n")


def test_doctor_says_what_finds_names(pocket, monkeypatch, capsys):
    monkeypatch.setattr("anymask.grounding.detect.is_here", lambda name: False)
    monkeypatch.setattr("anymask.grounding.clip_members.is_here", lambda member: False)
    _, out, _ = run(capsys, "doctor")
    assert "names     detectors: none on this machine\nnames     scorers: none on this machine\n" in out
    assert "names     windows stand in for a detector\n" in out
    assert "names     pocket scores names in place of image-text models\n" in out
    monkeypatch.setattr("anymask.grounding.detect.is_here", lambda name: name.startswith("owl"))
    _, out, _ = run(capsys, "doctor")
    assert "names     detectors: owlv2-base, owlv2-large\n" in out
    assert "stand in" not in out and "boxes judge masks in place of image-text models" in out
    monkeypatch.setattr("anymask.grounding.clip_members.is_here", lambda member: member.architecture == "ViT-L-14")
    _, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)["grounding"]
    assert found["scorers"]["ViT-L-14:openai"] and found["detectors"]["owlv2-base"] and not found["stands_in"]


def test_doctor_says_what_to_do(pocket, monkeypatch, tmp_path, capsys):
    gone = dataclasses.replace(CATALOGUE["pocket"], path=tmp_path / "gone.safetensors")
    monkeypatch.setitem(CATALOGUE, "pocket", gone)
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: {"timm": None, "torch": "1.0"}.get(name, real(name)))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert f"PROBLEM   the weights of pocket are missing at {gone.path}" in out
    assert 'PROBLEM   timm is missing\n  do      pip install "timm>=' in out
    assert "PROBLEM   torch is 1.0, but must be >=" in out


def test_doctor_works_with_broken_weights_and_torch(pocket, monkeypatch, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    monkeypatch.setitem(CATALOGUE, "pocket", dataclasses.replace(CATALOGUE["pocket"], path=broken))

    def no_torch():
        raise ImportError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "_torch", no_torch)
    code, out, _ = run(capsys, "doctor", "--json")
    problems = [one["what"] for one in json.loads(out)["problems"]]
    assert code == 1
    assert problems[0] == "operator torchvision::nms does not exist"
    assert problems[1].startswith("the weights of pocket do not load: ")


# --- flags, errors, tables, progress


@dataclass(frozen=True)
class Sizes:
    """Every kind of setting."""

    folder: Path = field(metadata={"help": "where"})
    count: int = field(default=0, metadata={"help": "how many, in %"})
    rate: float = field(default=0.5, metadata={"help": "how fast"})
    name: str | None = field(default=None, metadata={"help": "what"})
    loud: bool = field(default=True, metadata={"help": "how"})
    parts: tuple[int, ...] = field(default=(1,), metadata={"help": "which"})


def parsed(*words: str) -> Sizes:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, Sizes, {"rate": 2.0})
    return read_settings(parser.parse_args(words), Sizes)


def test_a_dataclass_is_flags():
    assert parsed("--folder", "a") == Sizes(Path("a"), rate=2.0)
    words = [
        "--folder",
        "a",
        "--count",
        "3",
        "--rate",
        "1e-3",
        "--name",
        "x",
        "--no-loud",
        "--parts",
        "4",
        "--parts",
        "5",
    ]
    assert parsed(*words) == Sizes(Path("a"), 3, 0.001, "x", False, (4, 5))
    assert parsed("--folder", "a").parts == (1,)


def test_a_flag_converts_or_refuses():
    with pytest.raises(argparse.ArgumentError, match="invalid int value: 'x'"):
        parsed("--folder", "a", "--count", "x")


def test_help_of_flags_says_defaults():
    parser = argparse.ArgumentParser()
    add_settings(parser, Sizes)
    shown = " ".join(parser.format_help().split())
    assert "where (required)" in shown
    assert "how many, in % (default: 0)" in shown


def test_a_setting_of_another_kind_is_refused():
    strange = dataclasses.make_dataclass("Strange", [("x", dict, field(metadata={"help": "?"}))])
    with pytest.raises(TypeError, match="a setting must be int, float, str, Path, bool"):
        add_settings(argparse.ArgumentParser(), strange)


def test_errors_are_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(FileNotFoundError(2, "No such file or directory", "a.jpg")) == "No such file or directory: a.jpg"
    assert one_line(FileNotFoundError("no such file: a.jpg")) == "no such file: a.jpg"
    assert one_line(MemoryError()) == "MemoryError"


def test_a_table_is_aligned():
    rows = [{"name": "a", "n": 5, "x": 0.25, "there": True}, {"name": "long", "n": 123, "x": None, "there": False}]
    assert table(rows).splitlines() == [
        "name    n      x  there",
        "a       5  0.250    yes",
        "long  123      -     no",
    ]


def test_progress_is_silent_in_a_log_until_time_has_passed(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr("anymask.cli.progress.monotonic", lambda: next(clock))
    with Progress("step") as progress:
        for done in (1, 2, 3):
            progress.show(done, 3, "loss 1")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "2/3 step  loss 1\n")


def test_progress_is_a_bar_at_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("image") as progress:
        progress.show(1, 3, "a.jpg")
        progress.show(1 + 1 / 3, 3, "a.jpg")
        progress.show(2, 3, "b.jpg")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "| 1/3 [" in shown.err
    assert "a.jpg" in shown.err
