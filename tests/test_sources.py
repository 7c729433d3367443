"""Names to folders and files: nothing is fetched that is here, and what cannot be had says what to do."""

import json
import logging
from importlib import import_module
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from anymask.models import sources
from anymask.models.catalogue import CATALOGUE, RECOMMENDED, misspelt, named, nearest
from anymask.models.protocol import CheckpointError
from anymask.models.sources import find, home, locate, lone_checkpoint, unpacked_folder, weights_at

TINY = "facebook/sam2.1-hiera-tiny"
COMMIT = "0" * 40
http = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])  # the library that the hub uses


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, an empty home, a folder to work in, and a hub that fails the test if it is asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANYMASK_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    hub(monkeypatch, AssertionError("the hub was asked"))
    return tmp_path / "hub"


def put(folder: Path, *names: str) -> Path:
    """A folder with files of these names, the weights real."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith(".safetensors"):
            save_file({"a": torch.zeros(1)}, folder / name)
        else:
            (folder / name).write_text("{}")
    return folder


def cached(cache: Path, hub_id: str, *names: str) -> Path:
    """A hub id in the cache, laid out as huggingface_hub does."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return put(repository / "snapshots" / COMMIT, *names)


def hub(monkeypatch, answer: Exception | Path) -> list[dict[str, object]]:
    """The hub raises, or puts its files into the cache: each call's options are kept. The cache is real."""
    real, calls = huggingface_hub.snapshot_download, []

    def snapshot_download(hub_id: str, **options: object) -> str:
        if options.get("local_files_only"):
            return real(hub_id, **options)
        calls.append(options)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def response(code: int) -> object:
    return http.Response(code, request=http.Request("GET", "http://localhost"))


def problem(model: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(model)
    return str(caught.value)


# --- what is here


def test_shipped_weights_are_here():
    assert locate("pocket").path == find("pocket") == CATALOGUE["pocket"].path


@pytest.mark.parametrize("name", [TINY, "sam2.1-hiera-tiny"])
def test_the_cache_is_used_by_hub_id_and_by_name(name, cache):
    assert find(name) is None
    folder = cached(cache, TINY, "config.json", "model.safetensors")
    assert locate(name).path == find(name) == folder


def test_a_cached_original_file_is_found(cache):
    folder = cached(cache, "dhkim2810/MobileSAM", "README.md", "mobile_sam.pt")
    assert locate("mobile-sam").path == folder / "mobile_sam.pt"


@pytest.mark.parametrize("names", [["config.json"], ["model.safetensors"], ["config.json", "model.fp16.safetensors"]])
def test_half_a_model_in_the_cache_is_not_here(names, cache):
    cached(cache, TINY, *names)
    assert find(TINY) is None


def test_a_sharded_model_is_here_when_every_part_is(cache):
    folder = cached(cache, TINY, "config.json", "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert find(TINY) is None
    put(folder, "model-00002-of-00002.safetensors")
    assert find(TINY) == folder


def test_an_unpacked_model_comes_before_the_cache(cache):
    cached(cache, TINY, "config.json", "model.safetensors")
    folder = put(home() / "models" / "facebook--sam2.1-hiera-tiny", "config.json", "model.safetensors")
    assert locate(TINY).path == locate("sam2.1-hiera-tiny").path == folder
    mine = put(home() / "models" / "mine", "mine.pt")
    assert locate("mine").path == mine


def test_a_path_comes_before_the_hub_but_not_before_a_catalogue_name(tmp_path):
    for name in (TINY, "pocket", "photo.pt"):
        put(Path(name), "config.json")
    assert locate(TINY).path == Path(TINY)
    assert locate("pocket").path == CATALOGUE["pocket"].path
    assert locate("./pocket").path == Path("pocket")
    assert locate(Path("photo.pt")).path == Path("photo.pt")


def test_a_located_path_says_what_is_known_of_it(cache):
    folder = cached(cache, TINY, "config.json", "model.safetensors")
    assert locate("sam2.1-hiera-tiny") == locate(TINY) == (folder, CATALOGUE["sam2.1-hiera-tiny"], False)
    put(Path("sam2.1-hiera-tiny"), "config.json")
    put(Path(TINY), "config.json")
    assert locate("sam2.1-hiera-tiny") == (folder, CATALOGUE["sam2.1-hiera-tiny"], False)
    assert locate(TINY) == (Path(TINY), None, True)


def test_an_unpacked_original_is_its_file_whatever_lies_beside():
    folder = put(home() / "models" / "dhkim2810--MobileSAM", "config.json", "mobile_sam.pt")
    assert find("mobile-sam") == find("dhkim2810/MobileSAM") == folder / "mobile_sam.pt"


def test_names_that_no_folder_can_have():
    assert unpacked_folder("../x") is None
    assert unpacked_folder("a/b/c") is None
    assert unpacked_folder("..") is None
    assert find("a b/c") is None


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "{kept}/anymask"),
        ("win32", "LOCALAPPDATA", "{kept}/anymask"),
        ("linux", "", "{user}/.local/share/anymask"),
        ("win32", "", "{user}/AppData/Local/anymask"),
        ("darwin", "", "{user}/Library/Application Support/anymask"),
    ],
)
def test_home_is_where_the_system_keeps_data(platform, variable, expected, tmp_path, monkeypatch):
    for name in ("ANYMASK_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "user")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "kept"))
    assert home() == Path(expected.format(kept=tmp_path / "kept", user=tmp_path / "user"))


# --- what is not


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_says_how_to_bring_it(variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert problem(TINY) == (
        f"{TINY} is not on this machine and the hub is switched off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE): where"
        f" there is a network run `anymask models pack {TINY} -o sam2.1-hiera-tiny.tar`, bring the file here and run"
        " `anymask models unpack sam2.1-hiera-tiny.tar`; pocket works without (-m pocket)"
    )
    assert problem("facebook/sam2.1-hiera-tinny").endswith(f"; did you mean {TINY}?")
    assert problem("someone/else").endswith("(-m pocket); there is no folder or file someone/else either")


def test_offline_says_what_a_gated_model_asks_for(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert problem("sam3") == (
        "facebook/sam3 is not on this machine and the hub is switched off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE):"
        " where there is a network accept the SAM License on http://localhost:1/facebook/sam3, then set HF_TOKEN or run"
        " `hf auth login`, then run `anymask models pack facebook/sam3 -o sam3.tar`, bring the file here and run"
        " `anymask models unpack sam3.tar`; or give the original file that you have (-m sam3.pt); pocket works without"
        " (-m pocket)"
    )


def test_a_path_with_the_name_of_the_catalogue_is_pointed_to(monkeypatch):
    put(Path("sam3"), "config.json")
    hub(monkeypatch, GatedRepoError("403", response=response(403)))
    assert problem("sam3").endswith("; or -m ./sam3, which is here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert problem("sam3").endswith("; or -m ./sam3, which is here")
    assert "which is here" not in problem("sam-vit-base")


def test_a_web_page_instead_of_the_hub(monkeypatch):
    hub(monkeypatch, json.JSONDecodeError("Expecting value", "<html>", 0))
    told = "what answered was not the hub (a network that wants a login first, or HF_ENDPOINT is wrong): where there"
    assert problem(TINY).startswith(f"{TINY} is not on this machine and {told}")


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_no_model(name):
    with pytest.raises(ValueError, match="must be a catalogue name, hub id, folder or file, got nothing"):
        locate(name)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (http.ConnectError("Name or service not known"), "(ConnectError: Name or service not known)"),
        (http.ReadTimeout("slow"), "(ReadTimeout: slow)"),
        (OfflineModeIsEnabled("offline"), "(OfflineModeIsEnabled: offline)"),
        (LocalEntryNotFoundError("not in the\ncache"), "(LocalEntryNotFoundError: not in the cache)"),
        (HfHubHTTPError("503 Server Error", response=response(503)), "(HfHubHTTPError: 503 Server Error)"),
        (RuntimeError("data processing"), "(RuntimeError: data processing)"),
    ],
)
def test_no_network_says_how_to_bring_it(error, told, monkeypatch, caplog):
    hub(monkeypatch, error)
    with caplog.at_level(logging.INFO):
        assert problem(TINY).startswith(
            f"{TINY} is not on this machine and the hub did not give it {told}: where there"
        )
    assert not caplog.records


def test_a_gated_model_names_page_licence_token_and_ways_around(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:1")
    hub(monkeypatch, GatedRepoError("403", response=response(403)))
    assert problem("sam3") == (
        "facebook/sam3 is gated: accept the SAM License on http://localhost:1/facebook/sam3, then set HF_TOKEN or run"
        " `hf auth login`; or give the original file that you have (-m sam3.pt); free of that are"
        " sam2.1-hiera-base-plus for points and boxes, and pocket for text"
    )
    assert problem("someone/thing").startswith(
        "someone/thing is gated: accept its licence on http://localhost:1/someone/thing, then set HF_TOKEN or run `hf"
        " auth login`; free of that"
    )


def test_an_unknown_repository_gets_the_nearest_names(monkeypatch):
    hub(monkeypatch, RepositoryNotFoundError("401", response=response(401)))
    assert problem("facebook/sam-vit-bas").startswith(
        "the hub has no facebook/sam-vit-bas, or it is private (then set HF_TOKEN), and there is no folder or file"
        " facebook/sam-vit-bas either: the nearest known are sam-vit-base,"
    )
    assert problem("foo/nope").endswith(": anymask models lists the known ones")


@pytest.mark.parametrize("name", ["out/best.pt", "run.2/model.safetensors", "a/b/c", "weights.tar"])
def test_a_missing_path_is_a_missing_file(name):
    with pytest.raises(FileNotFoundError, match=f"no such model file or folder: {name}"):
        locate(name)


def test_a_name_in_a_folder_that_is_here_is_a_missing_file():
    Path("runs").mkdir()
    with pytest.raises(FileNotFoundError, match="no such model file or folder: runs/last"):
        locate("runs/last")


def test_an_unknown_word_gets_the_nearest_names():
    with pytest.raises(
        ValueError, match=r"unknown model 'sam2.1-hiera-tinny': the nearest known are sam2.1-hiera-tiny,"
    ):
        locate("sam2.1-hiera-tinny")
    with pytest.raises(
        ValueError, match=r"unknown model 'poket': the nearest known are pocket \(anymask models\); or give a hub id"
    ):
        locate("poket")


def test_missing_shipped_weights(pocket):
    pocket.rename(pocket.with_suffix(".away"))
    try:
        assert problem("pocket") == f"the weights of pocket are missing at {pocket}: install anymask again"
    finally:
        pocket.with_suffix(".away").rename(pocket)


# --- fetching


def test_safetensors_are_fetched_and_nothing_else(cache, monkeypatch, caplog):
    folder = put(cache / "new", "config.json", "model.safetensors")
    calls = hub(monkeypatch, folder)
    with caplog.at_level(logging.INFO):
        assert locate(TINY).path == folder
    assert [call["allow_patterns"] for call in calls] == [[*sources.BESIDE], [*sources.WEIGHTS]]
    assert all(call["ignore_patterns"] == ["*/*"] for call in calls)
    assert caplog.messages == [f"fetching {TINY} (156 MB)"]


def test_pickles_are_fetched_where_there_are_no_safetensors(cache, monkeypatch):
    folder = put(cache / "new", "config.json")
    calls = hub(monkeypatch, folder)
    monkeypatch.setattr(sources, "weights_of", lambda _: ["pytorch_model.bin"] if len(calls) == 3 else [])
    assert locate("medsam-vit-base").path == folder
    assert calls[-1]["allow_patterns"] == [*sources.PICKLES]


def test_an_original_file_is_fetched_alone(cache, monkeypatch):
    folder = put(cache / "new", "mobile_sam.pt", "README.md")
    calls = hub(monkeypatch, folder)
    assert locate("mobile-sam").path == folder / "mobile_sam.pt"
    assert calls[-1]["allow_patterns"] == ["mobile_sam.pt"]


def test_a_repository_without_a_model(cache, monkeypatch):
    hub(monkeypatch, put(cache / "new", "README.md"))
    assert problem("someone/thing").startswith("someone/thing holds no config.json with model.safetensors or pytorch_")


def test_a_pocket_model_of_a_hub_id(cache, monkeypatch):
    folder = cached(cache, "someone/polyps", "pocket.safetensors")
    assert locate("someone/polyps").path == folder


def test_a_download_shows_no_bar_and_gives_no_advice(cache, monkeypatch, capsys):
    calls = hub(monkeypatch, put(cache / "new", "config.json", "model.safetensors"))
    logger = logging.getLogger("huggingface_hub")
    before, advised = logger.level, []
    stub = huggingface_hub.snapshot_download

    def advising(*args: object, **options: object) -> str:
        advised.append(options.get("local_files_only") or logger.isEnabledFor(logging.WARNING))
        return stub(*args, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", advising)
    locate(TINY)
    assert (advised, logger.level) == ([False, False], before)
    with calls[0]["tqdm_class"](total=3, desc="loud") as bar:
        bar.update(1)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


# --- folders


def test_the_weights_of_a_folder_or_file(tmp_path):
    folder = put(tmp_path / "model", "config.json", "model.safetensors", "original.pt")
    assert weights_at(folder) == weights_at(folder / "model.safetensors") == folder
    assert weights_at(folder / "original.pt") == folder / "original.pt"
    lone = put(tmp_path / "lone", "model.safetensors")
    assert weights_at(lone) == weights_at(lone / "model.safetensors") == lone / "model.safetensors"
    pocket = put(folder, "pocket.safetensors")
    assert weights_at(pocket) == pocket / "pocket.safetensors"
    with pytest.raises(
        CheckpointError, match="is no folder of a model: it must hold config.json and model.safetensors"
    ):
        weights_at(tmp_path)


def test_a_lone_checkpoint(tmp_path):
    put(tmp_path, "sam.pth", "README.md")
    assert lone_checkpoint(tmp_path) == tmp_path / "sam.pth"
    put(tmp_path, "other.pt")
    assert lone_checkpoint(tmp_path) is None


# --- the catalogue


def test_every_entry_can_be_named_and_described():
    for name, entry in CATALOGUE.items():
        assert named(name) is entry
        assert named(entry.hub_id or name) is entry
        assert bool(entry.path) != bool(entry.hub_id)
        assert entry.licence
        assert json.dumps(entry.describe())
    assert [name for name, entry in CATALOGUE.items() if entry.gated] == ["sam3"]
    assert [row["name"] for entry in CATALOGUE.values() if (row := entry.describe())["recommended"]] == [RECOMMENDED]
    assert not CATALOGUE[RECOMMENDED].gated
    assert named("") is None


def test_near_names():
    assert nearest("SAM-VIT-BASE").startswith("the nearest known are sam-vit-base, ")
    assert nearest("facebook/sam2.1-hiera-larg").startswith("the nearest known are sam2.1-hiera-large, ")
    assert nearest("zzzzzz") == "anymask models lists the known ones"
    assert misspelt("facebok/sam-vit-base") == "facebook/sam-vit-base"
    assert misspelt("someone/else") is None


def test_a_long_download_says_how_far_it_is(monkeypatch, caplog, capfd):
    def snapshot_download(hub_id, tqdm_class, **options):
        bar = tqdm_class(unit="B", unit_scale=True, total=0, desc="Downloading")
        bar.total += 40_000_000
        for _ in range(4):
            bar.update(10_000_000)
        assert list(tqdm_class([1, 2], desc="files")) == [1, 2]
        return "folder"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with caplog.at_level(logging.INFO, "anymask"):
        assert sources.download("owner/model", ("*.json",)) == Path("folder")
        assert caplog.messages == []  # it was quick
        monkeypatch.setattr(sources, "SECONDS_BETWEEN_LINES", 0)
        sources.download("owner/model", ("*.json",))
    assert caplog.messages == [f"fetching owner/model: {done} of 40 MB" for done in (10, 20, 30, 40)]
    assert capfd.readouterr() == ("", "")
