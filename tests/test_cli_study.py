"""`anymask teach study`: as a user types it, and what it says where something is wrong."""

import json

import pytest

from anymask.cli import teach_study
from anymask.cli.main import COMMANDS, main
from standin import write_disks


@pytest.fixture(autouse=True)
def _quick(pocket, monkeypatch):
    """The command, a tiny pocket, and no figures, which take longer than all else."""
    monkeypatch.setitem(COMMANDS, ("teach", "study"), ("teach_study", "STUDY", "a case study"))
    for module in ("study", "records"):
        monkeypatch.setattr(f"anymask.adapting.{module}.save_figure", lambda path, _: path.touch() or path)
    for name in ("records.compare", "records.draw_curves", "study.draw_study", "study.draw_examples"):
        monkeypatch.setattr(f"anymask.adapting.{name}", lambda *_: None)


@pytest.fixture
def place(tmp_path):
    write_disks(tmp_path / "disks", 4)
    return tmp_path / "disks"


def run(capsys, *words):
    code = main(["teach", "study", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def words(place, output, *more):
    quick = ("--max-train", 2, "--max-val", 2, "--model", "pocket", "--steps", 2, "--validate-every", 1, "--draws", 1)
    return ("--class", f"disks={place}", "--phrase", "disks=a red dog", *quick, "-o", output, *more)


def test_it_teaches_and_shows_the_tables(place, tmp_path, capsys):
    code, out, err = run(capsys, *words(place, tmp_path / "study", "--seed-text", "disks=red disk"))
    assert code == 0
    assert err == "disks: 2 images to learn from, 2 held out\n"
    assert out.startswith("teach study: pocket, held-out images of disks\n\nmeasure")
    assert "seed phrase" in out
    assert out.endswith(f"{tmp_path / 'study/study'}.md has the tables, .png and examples beside it the pictures\n")
    settings = json.loads((tmp_path / "study/settings.json").read_text())
    assert settings["classes"] == {
        "disks": {"place": str(place), "seed_phrase": "red disk", "phrases": ["red disk", "a red dog"]}
    }
    assert (settings["max_train"], settings["steps"], settings["batch_size"]) == (2, 2, 16)


def test_an_earlier_study_goes_on_only_when_asked(place, tmp_path, capsys):
    given = words(place, tmp_path / "study", "--json")
    code, out, _ = run(capsys, *given)
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "study/study.json").read_text())
    before = (tmp_path / "study/settings.json").read_bytes()
    assert run(capsys, *given) == (
        2,
        "",
        f"anymask teach study: {tmp_path / 'study/settings.json'} is of an earlier run: add --resume to go on with it,"
        " or give another -o\n",
    )
    code, again, _ = run(capsys, *given, "--resume", "--draws", 2)
    assert code == 0
    assert json.loads(again)["disks_end_iou"] == pytest.approx(json.loads(out)["disks_end_iou"], abs=2e-5)
    after = json.loads((tmp_path / "study/settings.json").read_text())
    assert after == {**json.loads(before), "draws": 2}  # those of the report beside it


def test_ctrl_c_says_what_is_kept(place, tmp_path, capsys, monkeypatch):
    from anymask.adapting.inversion import Inversion

    step, made = Inversion._step, []

    def interrupted(run):
        if made:
            raise KeyboardInterrupt
        made.append(run)
        return step(run)

    monkeypatch.setattr(Inversion, "_step", interrupted)
    code, out, err = run(capsys, *words(place, tmp_path / "study"))
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"anymask teach study: interrupted after 0.5 of 2 parts: the checkpoints of 1 run in {tmp_path / 'study'} are"
        " kept; run the same command with --resume to go on"
    )
    made.clear()
    monkeypatch.setattr(Inversion, "_step", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, *words(place, tmp_path / "new"))[2].endswith("0 of 2 parts: there was no checkpoint yet\n")


def test_some_failed_where_a_file_is_bad(place, tmp_path, capsys):
    (place / "images/00.png").write_bytes(b"torn")
    (place / "train.txt").write_text("00\n01")
    code, _, err = run(capsys, *words(place, tmp_path / "study"))
    assert code == 1, err
    assert err.startswith("disks: 1 image to learn from, 2 held out\n")
    assert f"disks: failed: {place / 'images/00.png'} must be an image" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "disks"], "--class must be NAME=DIR, got 'disks'"),
        (["--class", "=here"], "--class must be NAME=DIR, got '=here'"),
        (["--class", "dots=nowhere"], "the class 'dots' must be a folder with images/ and masks/ or one of the known"),
        (["--seed-text", "dots=dot"], "--seed-text must be for one of the classes disks, got 'dots'"),
        (["--seed-text", "dot"], "--seed-text must be NAME=TEXT, got 'dot'"),
        (["--phrase", "disks="], "--phrase must be NAME=TEXT, got 'disks='"),
        (["--phrase", "disks=dog", "--runs", "0"], "runs must be at least 1, got 0"),
        (["--phrase", "disks=dog", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--spare"], "the class 'disks' has no spare images"),
    ],
)
def test_wrong_use_is_one_line(more, message, place, tmp_path, capsys):
    code, out, err = run(capsys, *words(place, tmp_path / "study", *more))
    assert (code, out) == (2, "")
    assert err.startswith(f"anymask teach study: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "study/settings.json").exists()


def test_a_class_is_required(tmp_path, capsys):
    code, _, err = run(capsys, "-o", tmp_path)
    assert (code, err) == (
        2,
        "anymask teach study: the following arguments are required: --class (see anymask teach study --help)\n",
    )


def test_help_names_what_is_studied(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for flag in ("--class NAME=DIR", "--max-train N", "--runs N", "--spare", "--steps N", "--resume", "--json"):
        assert flag in out
    assert "--images" not in out
    assert teach_study.STUDY.examples[0] in out
