"""Settings of every test: the same random examples everywhere, no network but loopback, and a model that is quick."""

import ipaddress
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


class NetworkUsedError(RuntimeError):
    """A test tried to reach another machine."""


def _only_loopback(event: str, args: tuple[object, ...]) -> None:
    """An audit hook (PEP 578): sees every use of a socket, whichever library makes it, and can be removed by none."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) and address else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if isinstance(host, str | bytes) and not _is_loopback(host if isinstance(host, str) else host.decode()):
        raise NetworkUsedError(f"tests reach no network but loopback, and this one tried {host}")


def _is_loopback(host: str) -> bool:
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


sys.addaudithook(_only_loopback)


@pytest.fixture(autouse=True)
def _types_unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `wrong_types` passes them on purpose, to see what a user sees."""
    unchecked = request.node.get_closest_marker("wrong_types") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket checkpoint of random weights and tiny sizes: everything works, nothing is well found."""
    from anymask.models.pocket_files import save_pocket
    from tiny import tiny_model

    model, path = tiny_model(), tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_pocket(path, model.network, model.tower, {"settings": "random"})
    return path


@pytest.fixture
def pocket(tiny_pocket: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue's pocket model is the tiny one, so that commands run as a user would write them.

    Progress is not shown in lines, which depend on how fast the machine is.
    """
    from anymask.models.load import CATALOGUE

    monkeypatch.setitem(CATALOGUE, "pocket", replace(CATALOGUE["pocket"], path=tiny_pocket))
    monkeypatch.setattr("anymask.cli.progress.SECONDS_BETWEEN_LINES", math.inf)
    return tiny_pocket
