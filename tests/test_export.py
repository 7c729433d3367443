"""Exported folders answer as the model itself, for any number of prompts and clicks, and say what is wrong there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from sklearn.datasets import load_sample_images

import anymask
from anymask.cli.main import main
from anymask.models.export import export
from anymask.models.exported import ABOUT, FORMATS, read_about
from anymask.models.load import load
from anymask.models.promptable import PromptTensors
from anymask.models.protocol import CheckpointError
from anymask.models.quantising import calibration_images, drawn
from anymask.models.runtimes import runtime_for
from anymask.types import Image, Prompt
from tiny import tiny_model
from tiny_families import tiny_edgetam, tiny_mobile, tiny_sam, tiny_sam2, tiny_sam_hq
from tiny_sam3 import tiny_sam3, tiny_sam3_lite_text

# Shapes are symbols while a graph is made, which annotations would turn into the numbers of the example.
pytestmark = pytest.mark.wrong_types

FAMILIES = {
    "sam": tiny_sam,
    "sam_hq": tiny_sam_hq,
    "mobile": tiny_mobile,
    "sam2": tiny_sam2,
    "edgetam": tiny_edgetam,
    "sam3": tiny_sam3,
    "pocket": tiny_model,
}
SIZE = (90, 120)
FLOAT, INT8 = 0.995, 0.97  # IoU with the eager model


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ANYMASK_CACHE", str(folder))
    return folder


def picture() -> Image:
    return drawn(SIZE, seed=7)


def prompts() -> dict[str, list[Prompt]]:
    """Every kind, 1, 3 and 17 at once."""
    rng = np.random.default_rng(0)
    clicks = rng.uniform(5, 85, (17, 4, 2))
    boxes = [Prompt.box(x, y, x + 30, y + 25) for x, y in rng.uniform(0, 60, (3, 2))]
    rough = np.zeros(SIZE, bool)
    rough[20:60, 30:80] = True
    return {
        "one click": [Prompt.point(40, 30)],
        "17 clicks": [Prompt.points(some[:1]) for some in clicks],
        "four clicks each": [Prompt.points(some, [1, 0, 1, 1]) for some in clicks[:3]],
        "boxes": boxes,
        "box and click": [boxes[0] + Prompt.point(*clicks[0, 0], 0)],
        "mask": [Prompt.mask(rough)],
        "mask and click": [Prompt.mask(rough) + Prompt.point(50, 40)] * 3,
    }


def worst_iou(first: list, second: list) -> float:
    """Of all masks in two lists of Decoded."""
    found = [torch.cat([one.logits.flatten(0, 1) for one in some]) > 0 for some in (first, second)]
    inside = (found[0] & found[1]).flatten(1).sum(1)
    either = (found[0] | found[1]).flatten(1).sum(1)
    return float((inside / either.clamp(min=1)).where(either > 0, 1.0).min())


def compare(eager, other, least: float) -> None:
    """For every kind of prompt and of answer, on two images at once."""
    images = [picture(), Image(np.ascontiguousarray(picture().pixels[:, ::-1]))]
    features, same = eager.encode(images), other.encode(images)
    same = [replace(one, model=eager.name) for one in same]
    other.name = eager.name
    for kind, some in prompts().items():
        for multimask in (None, False, True):
            ours = other.decode(same, [some, some[:1]], multimask)
            assert worst_iou(eager.decode(features, [some, some[:1]], multimask), ours) >= least, (kind, multimask)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders of ONNX graphs by family, made when first asked for."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = export(FAMILIES[family](), tmp_path_factory.mktemp(family) / "exported")
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_clicks_say_what_prompts_say(family):
    model, n = FAMILIES[family](), 2
    features = model.embed(torch.stack([model.preprocess(picture(), model.frame(SIZE))]))
    boxes = torch.tensor([[3.0, 4, 30, 40], [10, 10, 50, 44]])
    masks = torch.randn(n, *model.mask_size, generator=torch.Generator().manual_seed(0))
    for p in (0, 1, 3):
        points = torch.rand(n, p, 2, generator=torch.Generator().manual_seed(p)) * 50
        labels = torch.arange(n * p).view(n, p) % 2
        for box in (None, boxes):
            for mask in (None, masks):
                if p or box is not None or mask is not None:
                    given = PromptTensors(points, labels, box, mask)
                    wanted = model.answers(features, torch.zeros(n, dtype=torch.long), given)
                    for one, other in zip(wanted, model.answer_clicks(features, model.clicks(given)), strict=True):
                        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_answers_as_the_eager_model(written, family):
    compare(FAMILIES[family](), load(written(family)), FLOAT)


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_answers_as_the_eager_model(written, family):
    compare(FAMILIES[family](), load(written(family), runtime="openvino"), FLOAT)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_int8_answers_nearly_as_the_eager_model(tmp_path, family, kind):
    folder = export(FAMILIES[family](), tmp_path / "int8", kind, "int8")
    model = load(folder)
    images = [picture()]
    eager = FAMILIES[family]()
    some = prompts()["boxes"] + prompts()["four clicks each"]
    ours = replace(model.encode(images)[0], model=eager.name)
    model.name = eager.name
    found = (eager.decode(eager.encode(images), [some])[0], model.decode([ours], [some])[0])
    shares = [
        worst_iou([replace(found[0], logits=a[None])], [replace(found[1], logits=b[None])])
        for a, b in zip(found[0].logits, found[1].logits, strict=True)
    ]
    assert np.mean(shares) >= INT8
    assert all(np.isfinite(shares))


def test_an_exported_folder_is_a_model_for_commands(pocket, tmp_path, capsys):
    folder = tmp_path / "exported"
    assert main(["export", "pocket", "-o", str(folder), "--format", "onnx"]) == 0
    assert f"use it: anymask segment photo.jpg --point 100,80 -m {folder}/ -o out/" in capsys.readouterr().out
    anymask.write_image(tmp_path / "photo.png", picture())
    ask = ["segment", str(tmp_path / "photo.png"), "--point", "60,40", "-m", f"{folder}/", "--json"]
    assert main([*ask, "-o", str(tmp_path / "out")]) == 0
    by_graphs = json.loads(capsys.readouterr().out)
    assert main([*ask[:4], "-m", "pocket", "--runtime", "eager", "--json"]) == 0
    eager = json.loads(capsys.readouterr().out)
    assert by_graphs[0]["masks"][0]["segmentation"] == eager[0]["masks"][0]["segmentation"]
    assert main(["segment", str(tmp_path / "photo.png"), "--text", "cat", "-m", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["made_by"]["detector"] == "windows of pocket"


def test_what_an_export_says_of_itself(written):
    folder = written("sam")
    about = json.loads((folder / ABOUT).read_text())
    assert about == {
        "version": 1,
        "family": "sam",
        "model": "tiny-sam",
        "format": "onnx",
        "dtype": "float32",
        "computed_in": "float32",
        "features": ["image_embedding"],
        "input_size": [128, 128],
        "mask_size": [32, 32],
        "encoder": "encoder.onnx",
        "decoder": "decoder.onnx",
    }
    assert {file.name for file in folder.iterdir()} == {ABOUT, "config.json", "encoder.onnx", "decoder.onnx"}
    model = load(folder)
    assert (model.name, model.device, model.input_size, model.capabilities.text) == (
        "exported",
        "cpu",
        (128, 128),
        False,
    )


def copied(written, tmp_path: Path, **changes: object) -> Path:
    folder = shutil.copytree(written("sam"), tmp_path / "copy")
    about = json.loads((folder / ABOUT).read_text()) | changes
    (folder / ABOUT).write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return folder


def problem(folder: Path, **options: str) -> str:
    with pytest.raises(CheckpointError) as raised:
        load(folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_folder_that_is_not_whole_says_what_is_missing(written, tmp_path):
    folder = copied(written, tmp_path)
    (folder / "decoder.onnx").unlink()
    assert problem(folder) == f"{folder} is not whole: decoder.onnx is missing: export the model again"


def test_a_graph_that_was_cut_off_is_named(written, tmp_path):
    folder = copied(written, tmp_path)
    whole = (folder / "encoder.onnx").read_bytes()
    (folder / "encoder.onnx").write_bytes(whole[: len(whole) // 2])
    for runtime in ("onnxruntime", "openvino"):
        assert problem(folder, runtime=runtime).startswith(f"{folder / 'encoder.onnx'} is no whole graph (")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "must be of version 1, got 2: use the anymask that wrote it, or export again"),
        ({"family": "sam9"}, "names the unknown family sam9: export the model again"),
        ({"format": "tflite"}, "names format tflite, computed in float32, which are not known: export it again"),
        ({"features": None}, "does not describe an exported model (Exported.__init__() missing 1 required"),
        ({"version": None}, "does not describe an exported model: export it again"),
        ({"decoder": "../decoder.onnx"}, "must name graphs by plain file names, got ../decoder.onnx: export the mod"),
        (
            {"mask_size": [64, 64]},
            "must have features, input and mask size (('image_embedding',), (128, 128), (32, 32)) to fit the files"
            " beside it, has (('image_embedding',), (128, 128), (64, 64)): export the model again",
        ),
    ],
)
def test_metadata_that_cannot_be_read_is_named(written, tmp_path, changes, says):
    folder = copied(written, tmp_path, **changes)
    assert problem(folder).startswith(f"{folder / ABOUT} {says}")


def test_metadata_that_is_no_json_is_named(written, tmp_path):
    folder = copied(written, tmp_path)
    (folder / ABOUT).write_text("{")
    assert problem(folder) == f"{folder / ABOUT} does not describe an exported model: export it again"


def test_config_of_another_network_is_named(written, tmp_path):
    folder = copied(written, tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": {"hidden_size": "many"}}))
    assert "config.json describes no network that can be built" in problem(folder)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graphs_of_another_model_are_named(written, tmp_path, runtime):
    folder = copied(written, tmp_path)
    shutil.copy(written("mobile") / "decoder.onnx", folder)  # of the same sizes but for the channels
    with pytest.raises(CheckpointError) as raised:
        load(folder, runtime=runtime)
    assert str(raised.value) == (
        f"{folder / 'decoder.onnx'} must have image_embedding (1 32 8 8) to fit the files beside it,"
        " has image_embedding (1 256 8 8): export the model again"
    )
    shutil.copy(written("sam2") / "encoder.onnx", folder)
    assert "encoder.onnx must have pixel_values (1 3 128 128) to fit the files" in problem(folder, runtime=runtime)


def test_graphs_of_another_size_are_named(written, tmp_path):
    folder, other = copied(written, tmp_path), tiny_sam()
    other.set_input_size((96, 160))
    resized = export(other, tmp_path / "resized")
    compare(other, load(resized), FLOAT)
    for file in ("config.json", ABOUT):
        shutil.copy(resized / file, folder)
    assert problem(folder).startswith(f"{folder / 'encoder.onnx'} must have pixel_values (1 3 96 160) to fit the files")


def test_what_cannot_compute_a_folder_says_so(written, tmp_path):
    folder = written("sam")
    for options, says in (
        (
            {"runtime": "eager"},
            f"{folder} is an onnx export, which runtime eager cannot compute: use onnxruntime or open",
        ),
        ({"device": "cuda"}, None),
        (
            {"image_size": 256},
            f"{folder} is an exported model, whose input and windows are fixed: export it at another",
        ),
    ):
        with pytest.raises(ValueError, match=None if says is None else says.replace("(", r"\(")):
            load(folder, **options)


def test_another_dtype_is_not_for_an_export(written, caplog):
    load(written("sam"), "cpu", "bfloat16")
    assert caplog.messages == [f"{written('sam')} computes in what it was exported in, not bfloat16"]


def test_an_export_takes_the_place_of_an_earlier_one_alone(written, tmp_path, monkeypatch):
    folder = copied(written, tmp_path)
    (folder / "of_before").touch()
    monkeypatch.setattr("anymask.models.export.write_onnx", lambda half, path, optimised: path.write_bytes(b"graph"))
    assert export(tiny_sam(), folder) == folder
    assert {file.name for file in folder.iterdir()} == {ABOUT, "config.json", "encoder.onnx", "decoder.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(
        FileExistsError, match="other is there already and holds something else: remove it, or give anot"
    ):
        export(tiny_sam(), tmp_path / "other")


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def stop(half, path, optimised):
        path.write_bytes(b"half a graph")
        raise KeyboardInterrupt

    monkeypatch.setattr("anymask.models.export.write_onnx", stop)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_sam(), tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "tflite"}, "format must be onnx or openvino, got tflite"),
        ({"dtype": "float16"}, "format onnx is written in float32, int8, got float16"),
        (
            {"format": "openvino", "dtype": "int4"},
            "format openvino is written in float32, float16, bfloat16, int8, got i",
        ),
        ({"calibrate": "photos"}, "only int8 is calibrated: give dtype int8, or no photos to calibrate float32 on"),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        export("nowhere", tmp_path / "exported", **options)


def test_photos_to_calibrate_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of photos to calibrate on: "):
        export("nowhere", tmp_path / "exported", dtype="int8", calibrate=tmp_path / "photos")
    with pytest.raises(
        ValueError, match="holds no photos to calibrate int8 on: give a folder with some, best 10 or more"
    ):
        export("nowhere", tmp_path / "exported", dtype="int8", calibrate=tmp_path)
    for i in range(20):
        anymask.write_image(tmp_path / f"{i:02}.png", drawn((20, 30 + i), i))
    assert [image.size[1] - 30 for image in calibration_images(tmp_path)] == [0, 2, 3, 5, 7, 9, 10, 12, 14, 16, 17, 19]
    assert {image.name for image in calibration_images()} >= {"astronaut", "chelsea", "coffee", "rocket"}


def test_a_detector_alone_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="tiny-lite-text answers neither points nor boxes, which is what an exported"):
        export(tiny_sam3_lite_text(), tmp_path / "exported")


def test_what_was_exported_is_not_exported_again(written, tmp_path, capsys):
    with pytest.raises(ValueError, match="a model to be exported must be on the CPU in float32, with its weights"):
        export(load(written("sam")), tmp_path / "again")
    assert main(["export", str(written("sam")), "-o", str(tmp_path / "again")]) == 2
    assert capsys.readouterr().err == (
        f"anymask export: {written('sam')} is exported already: give the model that it was made from\n"
    )


def test_wrong_use_is_all_that_is_said(pocket, tmp_path, capsys):
    (tmp_path / "file").touch()
    for given, says in (
        (["nowhere", "-o", str(tmp_path / "a")], "anymask export: unknown model 'nowhere'"),
        (["pocket", "-o", str(tmp_path / "file")], f"anymask export: {tmp_path / 'file'} is there already and holds"),
        (
            ["pocket", "-o", str(tmp_path / "file" / "a")],
            f"anymask export: cannot write {tmp_path / 'file' / 'a'}: Not",
        ),
    ):
        assert main(["export", *given]) == 2
        assert capsys.readouterr().err.startswith(says)


def test_the_help_of_dtype_names_those_of_each_format(capsys):
    assert main(["export", "--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.split())
    both, more = FORMATS["onnx"].dtypes, set(FORMATS["openvino"].dtypes) - set(FORMATS["onnx"].dtypes)
    assert f"--dtype KIND {' or '.join(both)}; with openvino also " in help_text
    assert all(dtype in help_text.partition("with openvino also ")[2].partition(";")[0] for dtype in more)


def test_half_size_and_bfloat16(tmp_path):
    sizes = {}
    for dtype, least in (("float32", FLOAT), ("float16", 0.99), ("bfloat16", INT8)):
        folder = export(tiny_sam(), tmp_path / dtype, "openvino", dtype)
        sizes[dtype] = (folder / "encoder.bin").stat().st_size
        assert read_about(folder).dtype == dtype
        compare(tiny_sam(), load(folder), least)
    assert sizes["float16"] < 0.6 * sizes["float32"] == 0.6 * sizes["bfloat16"]


@pytest.mark.parametrize(("kind", "dtype"), [("onnx", "float32"), ("openvino", "int8"), ("onnx", "int8")])
def test_the_shipped_pocket_on_photos(tmp_path, kind, dtype):
    eager = load("pocket", "cpu", runtime="eager")
    exported = load(export(eager, tmp_path / "pocket", kind, dtype))
    shares, rng = [], np.random.default_rng(1)
    for pixels in (data.stereo_motorcycle()[0], *load_sample_images().images):  # none that int8 is calibrated on
        image = anymask.read_image(pixels)
        (h, w), corners, sides = image.size, rng.uniform(0, 0.5, (10, 2)), rng.uniform(0.3, 0.5, (10, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1) * [w, h, w, h]
        some = [Prompt.box(*box) for box in boxes] + [Prompt.points(box.reshape(2, 2), [1, 0]) for box in boxes[:3]]
        both = (anymask.segment(image, some, model=model).masks for model in (eager, exported))
        shares += [(one & other).sum() / max(1, (one | other).sum()) for one, other in zip(*both, strict=True)]
    assert np.mean(shares) >= INT8 if dtype == "int8" else min(shares) >= FLOAT


def test_everything_in_an_exported_model(written):
    ours, theirs = map(everything, (load(written("sam2")), tiny_sam2()))
    assert len(ours) == len(theirs) > 0
    np.testing.assert_array_equal(ours.masks, theirs.masks)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_many_prompts_are_staged_in_a_forced_runtime_too(cache, runtime):
    model = tiny_sam2()
    model.runtime = runtime_for(model, runtime)
    np.testing.assert_array_equal(everything(model).masks, everything(tiny_sam2()).masks)
    assert [file.name for file in cache.rglob("*.onnx")] == ["encoder.onnx"]
    model.decode(model.encode([picture()]), [prompts()["one click"]])
    assert sorted(file.name for file in cache.rglob("*.onnx")) == ["decoder.onnx", "encoder.onnx"]


def everything(model):
    """Its predicted IoU is from 0 to 1 for random weights too."""
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    return anymask.everything(picture(), model=model, **settings)
