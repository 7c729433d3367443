"""The package as it is installed: quick to import, complete, typed; what README shows runs."""

import json
import re
import shlex
import socket
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import anymask
from anymask.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SECONDS_TO_IMPORT = 0.3


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_loads_nothing_heavy():
    code = "import json, sys, time; t = time.perf_counter(); import anymask; s = time.perf_counter() - t;"
    seconds, loaded = json.loads(run_python(code + "print(json.dumps([s, sorted(sys.modules)]))"))
    assert seconds < SECONDS_TO_IMPORT
    assert not {"torch", "numpy", "PIL", "cv2", "transformers"} & set(loaded)


def test_files_are_read_and_written_without_torch():
    code = "import sys, anymask; anymask.read_image; anymask.save; anymask.Prompt; print('torch' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_every_public_name_is_there():
    assert sorted(anymask.__all__) == list(anymask.__all__)
    for name in anymask.__all__:
        assert getattr(anymask, name) is not None
    assert set(anymask.__all__) <= set(dir(anymask))
    assert set(anymask.__all__) == {*anymask._MODULE_OF, "__version__"}


def test_type_checkers_see_the_same_names():
    source = Path(anymask.__file__).read_text(encoding="utf-8")
    declared = re.findall(r"^    from (anymask\S+) import (.+)$", source, re.MULTILINE)
    assert {module: tuple(names.split(", ")) for module, names in declared} == anymask._HOMES


def test_no_public_name_is_also_a_module():
    for name in set(anymask.__all__) - {"__version__"}:
        with pytest.raises(ModuleNotFoundError):
            import_module(f"anymask.{name}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'anymask' has no attribute 'segmnt'"):
        _ = anymask.segmnt


def test_the_package_is_typed_and_its_version_is_one():
    assert (Path(anymask.__file__).parent / "py.typed").is_file()
    assert metadata.version("anymask") == anymask.__version__
    assert f"## [{anymask.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_version_of_the_licence_is_the_one_named():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert metadata.metadata("anymask")["License-Expression"] == "Apache-2.0"


def readme_blocks() -> list[str]:
    readme = ROOT / "README.md"
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readme_runs(pocket, tmp_path, monkeypatch):
    """Every Python block, one after the other, in a folder with a photo.jpg."""
    from skimage import data

    anymask.write_image(tmp_path / "photo.jpg", anymask.read_image(data.chelsea()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in readme_blocks():
        exec(compile(block, "README.md", "exec"), names)
    assert readme_blocks()


def test_the_commands_of_readme_are_understood():
    """Every `anymask ...` of README has a command of that name, which takes these flags."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = {found.strip() for found in re.findall(r"(?:^|`)(anymask [^`\n]+?)(?:`|$)", text, re.MULTILINE)}
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        name = max((name for name in COMMANDS if tuple(words[: len(name)]) == name), key=len)
        module, attribute, _ = COMMANDS[name]
        command = getattr(import_module(f"anymask.cli.{module}"), attribute)
        command.parser(" ".join(name)).parse_intermixed_args(words[len(name) :])


def test_the_network_is_blocked_and_loopback_is_not():
    with pytest.raises(RuntimeError, match=r"no network but loopback, and this one tried 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="this one tried example.org"):
        socket.getaddrinfo("example.org", 80)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_no_document_has_a_blank_left_to_fill():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert "@@" not in path.read_text(encoding="utf-8"), path
