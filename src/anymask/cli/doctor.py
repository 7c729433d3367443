"""`anymask doctor`: what this machine has, what is missing, and what to do about it. Works when imports fail."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anymask
from anymask.cli.commands import DONE, SOME_FAILED, Command, one_line, show_json

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# What a broken installation raises on import.
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError)
# What adds to what anymask can do; the packages for its own development are left out.
_EXTRAS = ("clip", "int8", "onnx", "openvino", "supervision", "train")
_REINSTALL = "install anymask again in a fresh environment: pip install --force-reinstall anymask"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None but those of every command."""


def run(args: argparse.Namespace) -> int:
    """Shows what was found; the code is 1 if something that anymask needs is missing."""
    found = examine()
    if args.json:
        show_json(found)
    else:
        print(_as_text(found))
    return SOME_FAILED if found["problems"] else DONE


def examine() -> dict[str, Any]:
    """Facts by topic, and `problems`: what is wrong and what to do."""
    problems: list[dict[str, str]] = []
    return {
        "anymask": {"version": anymask.__version__, "folder": str(Path(anymask.__file__).parent)},
        "python": {"version": platform.python_version(), "executable": sys.executable, "system": platform.platform()},
        "torch": _guarded(_torch, problems, _REINSTALL),
        "packages": _packages(problems),
        "models": _guarded(lambda: _models(problems), problems, _REINSTALL),
        "grounding": _guarded(_grounding, problems, _REINSTALL),
        "hub": _hub(),
        "problems": problems,
    }


def _guarded(
    examined: Callable[[], dict[str, Any]], problems: list[dict[str, str]], remedy: str
) -> dict[str, Any] | None:
    try:
        return examined()
    except _BROKEN as error:
        problems.append({"what": one_line(error), "do": remedy})
        return None


def _torch() -> dict[str, Any]:
    import torch

    from anymask.models.load import pick_device

    return {
        "version": torch.__version__,
        "device": pick_device("auto"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _packages(problems: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """What anymask's own metadata asks for, with what is there."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("anymask") or []]
    except metadata.PackageNotFoundError:
        problems.append({"what": "anymask runs from a folder and is not installed", "do": "pip install -e ."})
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for one in wanted:
        required = _applies(one, "")
        if not required and not any(_applies(one, extra) for extra in _EXTRAS):
            continue
        version = _version(one.name)
        fits = version is not None and one.specifier.contains(version, prereleases=True)
        rows[one.name] = {"version": version, "wanted": str(one.specifier), "required": required}
        if required and not fits:
            has = "is missing" if version is None else f"is {version}, but must be {one.specifier}"
            problems.append({"what": f"{one.name} {has}", "do": f'pip install "{one.name}{one.specifier}"'})
    return rows


def _applies(requirement: "Requirement", extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _models(problems: list[dict[str, str]]) -> dict[str, Any]:
    """Which weights are here, and whether those that ship with anymask load; others may be gigabytes."""
    from anymask.models.catalogue import CATALOGUE
    from anymask.models.sources import find

    shipped = {name: _shipped(name, str(entry.path), problems) for name, entry in CATALOGUE.items() if entry.path}
    found = {name: find(name) for name in CATALOGUE if name not in shipped}
    rest = {name: {"installed": path is not None, "path": path and str(path)} for name, path in found.items()}
    return {**shipped, **rest}


def _shipped(name: str, path: str, problems: list[dict[str, str]]) -> dict[str, Any]:
    from safetensors import SafetensorError

    from anymask.models.load import CheckpointError, load

    started = time.perf_counter()
    installed, loads = Path(path).is_file(), False
    if installed:
        try:
            load(name, "cpu", runtime="eager")
            loads = True
        except (CheckpointError, SafetensorError, ValueError, KeyError, TypeError, *_BROKEN) as error:
            problems.append({"what": f"the weights of {name} do not load: {one_line(error)}", "do": _REINSTALL})
    else:
        problems.append({"what": f"the weights of {name} are missing at {path}", "do": _REINSTALL})
    seconds = round(time.perf_counter() - started, 2) if loads else None
    return {"installed": installed, "loads": loads, "seconds": seconds, "path": path}


def _grounding() -> dict[str, Any]:
    """What finds names where models know none, as far as it is here, and what stands in (`load_grounding`)."""
    from anymask.grounding import clip_members, detect

    detectors = {name: detect.is_here(name) for name in detect.CATALOGUE}
    scorers = {member.name: clip_members.is_here(member) for member in clip_members.MEMBERS}
    stands_in = []
    if not any(detectors.values()):
        stands_in.append("windows stand in for a detector")
    if not any(scorers.values()):
        instead = "boxes judge masks" if any(detectors.values()) else "pocket scores names"
        stands_in.append(f"{instead} in place of image-text models")
    return {"detectors": detectors, "scorers": scorers, "stands_in": stands_in}


def _hub() -> dict[str, Any]:
    """Where transformers looks for other models; pocket needs none of it."""
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    return {
        "offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
        "cache": os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub")),
        "token": bool(os.environ.get("HF_TOKEN")) or Path(home, "token").is_file(),
    }


def _as_text(found: dict[str, Any]) -> str:
    about, python, torch, hub = found["anymask"], found["python"], found["torch"], found["hub"]
    lines = [
        f"anymask   {about['version']} in {about['folder']}",
        f"python    {python['version']} ({python['executable']}) on {python['system']}",
    ]
    if torch:
        device = f"{torch['device']} ({torch['gpu']})" if torch["gpu"] else torch["device"]
        threads = f"{torch['threads']} threads of {torch['cores']} cores"
        lines.append(f"torch     {torch['version']}, device {device}, {threads}")
    lines += [f"model     {name}: {_state(model)}" for name, model in (found["models"] or {}).items()]
    lines += _grounding_lines(found["grounding"]) if found["grounding"] else []
    for name, row in found["packages"].items():
        kind = "" if row["required"] else " (optional)"
        lines.append(f"package   {name} {row['version'] or 'is not installed'}{kind}")
    offline = "offline (HF_HUB_OFFLINE)" if hub["offline"] else "may be contacted, for models that pocket is not"
    token = "a token is there" if hub["token"] else "no token"
    lines.append(f"hub       {offline}; cache {hub['cache']}; {token}")
    if not found["problems"]:
        return "\n".join([*lines, "", "Nothing is missing."])
    return "\n".join([*lines, "", *(f"PROBLEM   {one['what']}\n  do      {one['do']}" for one in found["problems"])])


def _grounding_lines(grounding: dict[str, Any]) -> list[str]:
    here = {kind: [name for name, is_here in grounding[kind].items() if is_here] for kind in ("detectors", "scorers")}
    rows = [f"names     {kind}: {', '.join(names) or 'none on this machine'}" for kind, names in here.items()]
    return [*rows, *(f"names     {line}" for line in grounding["stands_in"])]


def _state(model: dict[str, Any]) -> str:
    if not model["installed"]:
        return "not installed"
    if "loads" not in model:
        return f"in {model['path']}"
    return f"loads in {model['seconds']} s" if model["loads"] else "does not load"


DOCTOR = Command(
    description="Looks at Python, torch, the packages, the weights and the hub settings, and says what to do.",
    examples=("anymask doctor", "anymask doctor --json"),
    notes="exit code 1 if something that anymask needs is missing",
    add_flags=add_flags,
    run=run,
)
