"""`anymask train scorer` with stand-ins that know the answers: what is planted is learned, kept, resumed, and used."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from anymask.cli.main import main
from anymask.data.concepts import read_concept
from anymask.data.scorers import read_scorer
from anymask.grounding import detect, loading
from anymask.grounding.clip_members import ClipModel, Member
from anymask.grounding.pipeline import Grounding
from anymask.grounding.protocol import Detections, DetectionThresholds
from anymask.grounding.score import EnsembleScorer
from anymask.models.protocol import Capabilities
from anymask.segmentation import segment
from anymask.training import scorer as recipe
from anymask.training.measurements import LOWEST, Measured
from anymask.training.scorer import ScorerFitting, ScorerSettings
from anymask.training.scorer_fit import _doubts, file_stem
from anymask.types import Prompt
from oracles import OBJECTS, SIZE, Oracle, box_mask, write_set
from tiny import tiny_model
from tiny_families import tiny_sam

TRUE_BOXES = [(name, box) for name, box, _ in OBJECTS]
EXACT = {"cat": 0.3, "dog": 0.95}  # presences of names that are there; others have 0.1, but cows 0.9


def presence(name, picture):
    return EXACT.get(name, 0.9 if name == "cow" else 0.1)


def nearest(prompt, picture):
    """The object whose box is most like the prompt's."""
    distance = [np.abs(np.subtract(box, prompt.box_coords)).sum() for _, box in TRUE_BOXES]
    return box_mask(TRUE_BOXES[int(np.argmin(distance))][1])


def three(mask):
    """The object itself, frayed, and far too large, which the model is surest of."""
    frayed = mask & (np.indices(SIZE).sum(axis=0) % 2 == 0)
    return [(frayed, 0.7), (mask, 0.5), (np.ones(SIZE, bool), 0.9)]


@pytest.fixture
def oracle(monkeypatch):
    """What is loaded, whatever is asked for."""
    model = Oracle(mask=nearest, presence=presence, candidates=three)
    monkeypatch.setattr(recipe, "load", lambda *_: model)
    return model


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path, ["farm"] * 8 + ["zoo", "wild"])
    return tmp_path


def command(folder, *more, output="run") -> list[str]:
    given = ["--images", str(folder), "--annotations", str(folder / "set.json"), "--scorer", "pocket"]
    return ["train", "scorer", *given, "-o", str(folder / output), *more]


def settings(folder, **changes):
    return ScorerSettings(
        **{"images": folder, "annotations": folder / "set.json", "output": folder / "run", "scorer": ("pocket",)}
        | changes
    )


def fitted(folder, **changes):
    run = ScorerFitting(settings(folder, **changes))
    list(run.images())
    return run.finish()


# --- what is learned


def test_names_get_thresholds_of_their_own(folder, oracle, capsys):
    assert main(command(folder, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    scorer = read_scorer(folder / "run" / "scorer.json")
    rows = {row["name"]: row for row in scorer.report["names"]}
    assert (rows["cat"]["positives"], rows["cat"]["negatives"]) == (10, 0)
    assert "cat" not in scorer.thresholds["oracle"] and "has no negatives" in rows["cat"]["note"]
    assert any(
        note.startswith("2 names have no negatives and get the best threshold of all names: cat")
        for note in scorer.report["notes"]
    )
    assert found["scorer"] == str(folder / "run" / "scorer.json") and found["thresholds"] == scorer.thresholds
    assert found["images"] == 10 and found["images_held_out"] == 2 and found["failed"] == {}


def varied(folder, oracle):
    """Of ten pictures the first five have no cat, and the last two no dog."""
    document = json.loads((folder / "set.json").read_text())
    gone = [(1, 6, 1), (9, 11, 2)]  # first image, the one after the last, category
    document["annotations"] = [
        row
        for row in document["annotations"]
        if not any(a <= row["image_id"] < b and row["category_id"] == category for a, b, category in gone)
    ]
    for row in document["images"]:
        row["source"] = "farm"
    (folder / "set.json").write_text(json.dumps(document))
    for i in range(1, 6):
        pixels = np.asarray(PillowImage.open(folder / f"{i}.png")).copy()
        pixels[0, 0] = 7
        PillowImage.fromarray(pixels).save(folder / f"{i}.png")
    oracle.presence = lambda name, picture: 0.12 if name == "cat" and picture[0, 0] == 7 else presence(name, picture)


def test_a_rare_name_is_found_with_what_was_learned(folder, oracle):
    """Cats score 0.3 where they are, 0.12 where not: below the usual 0.5, and `segment` finds them by their concept."""
    varied(folder, oracle)
    scorer = fitted(folder)
    row = {row["name"]: row for row in scorer.report["names"]}["cat"]
    assert (row["positives"], row["negatives"], row["f1_before"], row["f1_after"]) == (5, 5, 0, 1)
    assert 0.12 < scorer.thresholds["oracle"]["cat"] <= 0.3 and 0 < scorer.of_all["oracle"] < 0.99
    concept = read_concept(folder / "run" / "concepts" / "cat.safetensors")
    assert concept.thresholds == {"oracle": scorer.thresholds["oracle"]["cat"]}
    assert concept.token_embeddings is None and concept.base_model == "oracle"
    picture = folder / "8.png"
    assert len(segment(picture, text="cat", model=oracle, cleanup=None, detector=None)) == 0
    learned = replace(Prompt.text("cat"), learned=(concept,))
    made = segment(picture, [learned], model=oracle, cleanup=None).made_by
    assert made["thresholds"] == {"cat": pytest.approx(scorer.thresholds["oracle"]["cat"], abs=1e-4)}


def test_quality_chooses_before_and_after_beside_the_models_own_choice(folder, oracle):
    report = fitted(folder).report
    assert report["choices"] > 0
    assert report["choice_iou_oracle"] == report["choice_iou_fitted"] == 1
    assert report["choice_iou_predicted_iou"] < 0.3
    weights = {row["weight"]: row for row in report["weights"]}
    assert weights["text"]["before"] == 0.6 and weights["best_size, least"]["before"] == 0.05


def test_the_best_size_stays_the_usual_where_that_of_the_objects_chooses_no_better(folder, oracle):
    scorer = fitted(folder)
    assert scorer.best_size == (0.05, 0.5)
    assert sum(scorer.quality.values()) == pytest.approx(1)


# --- detectors


@dataclass
class Boxes:
    """Finds cats where they are with 0.5 and 0.4, on a part with 0.9, beside them with 0.2; other names with 0.25."""

    name: str = "boxes"
    thresholds: DetectionThresholds = field(default_factory=lambda: DetectionThresholds(0.45, 0.4))
    asked: list = field(default_factory=list)

    def detect(self, image, names, thresholds=None):
        self.asked.append(thresholds)
        rows = [((2, 3, 12, 13), 0.5, "cat"), ((14, 14, 24, 19), 0.4, "cat"), ((3, 4, 5, 6), 0.9, "cat")]
        rows += [((0, 0, 2, 2), 0.2, "cat"), *(((0, 0, 30, 20), 0.25, name) for name in names if name != "cat")]
        boxes, scores, labels = zip(*rows, strict=True)
        return Detections(np.asarray(boxes, np.float32), np.asarray(scores), labels, dict.fromkeys(names, 0.25))


def test_a_detector_is_learned_from_right_and_wrong_finds(folder, oracle, monkeypatch):
    detector = Boxes()
    oracle.capabilities = Capabilities()
    scorer = EnsembleScorer((Namer("good"),))
    monkeypatch.setattr(recipe, "load_grounding", lambda *_, **__: Grounding(detector, scorer))
    found = fitted(folder)
    rows = {row["name"]: row for row in found.report["names"]}
    assert (rows["cat"]["positives"], rows["cat"]["negatives"]) == (20, 9)  # the zoo does not say what it lacks
    assert 0.2 < found.thresholds["boxes"]["cat"] <= 0.4
    assert set(found.thresholds) == {"boxes"} and found.report["detection_f1_per_name"] == 1
    assert detector.asked[0] == DetectionThresholds(LOWEST * 0.45, LOWEST * 0.45)


# --- members


class Namer(ClipModel):
    """A member of an ensemble that knows the grey of each name's objects; a blind one knows nothing."""

    image_size, scale, bias, digest = 9, 9.0, None, "namer"

    def __init__(self, name, weight=1.0):
        super().__init__(Member(name, "x", weight), torch.nn.Identity(), torch.tensor, Path(name))

    def embed_images(self, pictures):
        greys = [int(picture[4, 4].mean()) for picture in pictures]
        names = [min(OBJECTS, key=lambda one, grey=grey: abs(one[2] - grey))[0] for grey in greys]
        return self.embed_texts(["blind" if self.member.architecture == "blind" else name for name in names])

    def embed_texts(self, texts):
        kinds = ["cat", "dog", "blind"]
        held = [[float(kind in text) for kind in kinds] for text in texts]
        return torch.tensor([[*row, float(not any(row))] for row in held])


def test_members_that_know_names_count(folder, oracle, monkeypatch):
    scorer = EnsembleScorer((Namer("good"), Namer("blind", 3.0)))
    monkeypatch.setattr(recipe, "load_grounding", lambda *_, **__: Grounding(Boxes(), scorer))
    found = fitted(folder)
    assert found.members["good:x"] > 0.9
    assert sum(found.members.values()) == pytest.approx(1)
    assert found.report["members_brier_fitted"] < found.report["members_brier_usual"]
    assert found.report["members_named_right_fitted"] == 1
    assert {row["weight"]: row["before"] for row in found.report["weights"]}["blind:x"] == 0.75


def test_pocket_alone_leaves_nothing_to_weigh(folder, oracle):
    found = fitted(folder)
    assert found.members == {}
    assert "oracle is the only member of the scorer: there is nothing to weigh" in found.report["notes"]


def test_models_of_the_real_classes_are_measured_whole(tmp_path, monkeypatch):
    """Pocket as model, as scorer and behind windows; and a SAM, which knows no text, with the same."""
    write_set(tmp_path, ["farm", "farm"])
    pocket = tiny_model()
    monkeypatch.setattr(recipe, "load", lambda *_: pocket)
    found = fitted(tmp_path, detector="windows")
    assert list(found.thresholds) == [pocket.name, f"windows of {pocket.name}"]
    assert len(found.report["names"]) == 2 * len({row["name"] for row in found.report["names"]})
    monkeypatch.setattr(recipe, "load", lambda *_: tiny_sam())
    monkeypatch.setattr(loading, "load", lambda *_: pocket)
    monkeypatch.setattr(detect, "is_here", lambda name: False)
    found = fitted(tmp_path, output=tmp_path / "sam")
    assert "windows of " in next(iter(found.thresholds)) and len(found.thresholds) == 1
    assert sum(found.quality.values()) == pytest.approx(1)


# --- going on


def interrupt_after(monkeypatch, count):
    whole, done = recipe.measure, []

    def measure(*given):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(given[4])
        return whole(*given)

    monkeypatch.setattr(recipe, "measure", measure)
    return done


def test_an_interrupted_run_goes_on_to_the_same_end(folder, oracle, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert main(command(folder)) == 130
    kept = (
        f"interrupted after 3 images: {folder / 'run' / 'measured.jsonl'} is kept; run the same command with --resume"
    )
    assert kept in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["measured.jsonl", "settings.json"]
    assert main(command(folder)) == 2
    assert "is of an earlier run: add --resume to go on with it" in capsys.readouterr().err
    done = interrupt_after(monkeypatch, 99)
    assert main(command(folder, "--resume")) == 0
    assert done == [f"{i}.png" for i in range(4, 11)]
    assert main(command(folder, output="once")) == 0
    first, second = (read_scorer(folder / name / "scorer.json") for name in ("run", "once"))
    assert replace(first, report={}) == replace(second, report={})
    for name in ("names", "weights", "notes", "choice_iou_fitted", "presence_f1_per_name"):
        assert first.report[name] == second.report[name]


def test_a_finished_run_is_fitted_again_without_measuring(folder, oracle, monkeypatch, capsys):
    assert main(command(folder, "--limit", "4")) == 0
    done = interrupt_after(monkeypatch, 99)
    assert main(command(folder, "--resume", "--limit", "6")) == 0
    assert len(done) == 2
    assert read_scorer(folder / "run" / "scorer.json").report["images"] == 6


def test_another_run_is_not_gone_on_with(folder, oracle, capsys):
    assert main(command(folder, "--limit", "2")) == 0
    before = (folder / "run" / "scorer.json").read_bytes()
    assert main(command(folder, "--limit", "2", "--resume", "--absent", "3", "--seed", "1")) == 2
    assert "measured.jsonl is of another run: absent, seed changed; give what it began with" in capsys.readouterr().err
    assert (folder / "run" / "scorer.json").read_bytes() == before


def test_other_weights_of_scorer_or_detector_are_another_run(folder, oracle, monkeypatch):
    def run_with(weight=1.0, network=0.0):
        scorer, detector = EnsembleScorer((Namer("good"), Namer("blind", weight))), Boxes()
        detector.network = torch.nn.ParameterList([torch.full((2,), network)])
        monkeypatch.setattr(recipe, "load_grounding", lambda *_, **__: Grounding(detector, scorer))
        return ScorerFitting(settings(folder, limit=2, detector="boxes"))

    assert len(list(run_with().images())) == 2
    assert list(run_with().images()) == []
    with pytest.raises(ValueError, match="another run: scorer changed"):
        run_with(weight=2.0)
    with pytest.raises(ValueError, match="another run: detector changed"):
        run_with(network=1.0)


# --- doubts


def test_doubts_are_of_what_is_used_and_say_what_is_compared():
    values = {"presence_f1_usual": 0.7, "presence_f1_per_name": 0.6, "presence_f1_per_name_else_one": 0.8}
    values |= {"choice_iou_usual": 0.625, "choice_iou_fitted": 0.62}
    held_out = [Measured("1.png", [], [], [], [])]
    [doubt] = _doubts(values, held_out)
    assert doubt.startswith("on the images held out weights choose worse masks than the usual ones (0.620 after 0.625)")
    assert "when fitted without these images; what is kept and shown is fitted to all" in doubt
    [_, doubt] = _doubts(values | {"presence_f1_per_name_else_one": 0.5}, held_out)
    assert "thresholds do worse (presence) than the usual ones (0.500 after 0.700)" in doubt


# --- bad input


def test_a_set_without_names_is_refused(folder, oracle, capsys):
    text = (folder / "set.json").read_text()
    for name in ("cat", "dog"):
        text = text.replace(f'"name": "{name}"', '"name": "object"')
    (folder / "set.json").write_text(text)
    assert main(command(folder)) == 2
    assert "set.json names nothing in 10 images: a scorer learns from names" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_without_negatives_the_way_out_is_named(tmp_path, oracle):
    write_set(tmp_path, ["", "", ""], rows=())
    found = fitted(tmp_path)
    assert found.thresholds == {"oracle": {}} and list((tmp_path / "run" / "concepts").iterdir()) == []
    assert any("no image says for certain what is not in it" in note for note in found.report["notes"])
    found = fitted(tmp_path, exhaustive=True, output=tmp_path / "other")
    assert {row["name"] for row in found.report["names"]} >= {"cat", "cow", "horse"}
    assert not any("for certain" in note for note in found.report["notes"])


def test_one_image_is_all_there_is_to_learn_from(tmp_path, oracle):
    write_set(tmp_path, ["farm"])
    found = fitted(tmp_path)
    assert found.report["images_held_out"] == 0 and found.report["choice_iou_fitted"] is None
    assert "no image is held out: nothing says whether this does better than what is usual" in found.report["notes"]
    assert found.quality == {"text": 0.6, "compactness": 0.2, "size": 0.1, "smoothness": 0.1}


def test_images_that_cannot_be_read_are_named_and_the_rest_goes_on(folder, oracle, capsys):
    (folder / "2.png").write_text("no picture")
    (folder / "3.png").unlink()
    assert main(command(folder, "--json")) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["images"] == 8 and sorted(found["failed"]) == ["2.png", "3.png"]
    assert "2.png is left out: " in shown.err and "3.png is left out: " in shown.err
    write_set(folder, ["farm"] * 8 + ["zoo", "wild"])
    assert main(command(folder, "--json", "--resume")) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10


def test_an_image_of_nothing_tells_what_is_not_there(folder, oracle):
    document = json.loads((folder / "set.json").read_text())
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] != 1]
    (folder / "set.json").write_text(json.dumps(document))
    rows = {row["name"]: row for row in fitted(folder).report["names"]}
    assert [(rows[name]["positives"], rows[name]["negatives"]) for name in ("cat", "dog", "cow")] == [
        (9, 1),
        (9, 1),
        (0, 9),
    ]


def test_no_image_that_can_be_read_is_an_error(folder, oracle, capsys):
    for file in folder.glob("*.png"):
        file.write_text("no picture")
    assert main(command(folder)) == 2
    assert "none of 10 images could be read: 1.png: " in capsys.readouterr().err
    assert not (folder / "run" / "scorer.json").exists()


def test_the_output_must_be_a_folder(folder, oracle, capsys):
    (folder / "run").write_text("")
    assert main(command(folder)) == 2
    assert f"-o must be a folder, got the file {folder / 'run'}" in capsys.readouterr().err
    assert main([*command(folder)[:-1], str(folder / "run" / "below")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_an_empty_set_is_refused(tmp_path, oracle):
    (tmp_path / "set.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match="set.json must hold at least one image, got none"):
        fitted(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": 0}, "objects must be at least 1, got 0"),
        ({"absent": 0}, "absent must be at least 1, got 0"),
        ({"val_share": 1.0}, "val_share must be at least 0 and below 1, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **change)


def test_names_become_file_names():
    names = ["cat", "Cat", "a/b", "a_b", "..", "été", "🐈", "🐕", "x" * 99, "red car ", "red car", "CON"]
    stems = [file_stem(name) for name in names]
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert stems[0] == "cat" and stems[10] == "red car"
    assert not any(set(stem) & set('/\\:*?"<>|.') or len(stem) > 80 for stem in stems)
