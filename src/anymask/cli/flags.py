"""A settings dataclass as flags, and the flags as settings: one mechanism for every command that has settings.

A field `val_images: Path | None` with `metadata={"help": ...}` is the flag `--val-images`: its type converts the text,
its default is the flag's, a bool has a `--no-` form, a tuple is a flag that repeats.
"""

import argparse
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from anymask.data.files import write_json

Settings = TypeVar("Settings")
SHORT = {"output": ("-o",), "model": ("-m",)}


def add_settings(
    parser: argparse._ActionsContainer,
    settings: type,
    defaults: Mapping[str, object] = types.MappingProxyType({}),
    only: Collection[str] | None = None,
) -> None:
    """A flag for every field of the dataclass, or `only` for some; `defaults` stand in for those of the class."""
    hints = get_type_hints(settings)
    for one in (one for one in fields(settings) if only is None or one.name in only):
        default = defaults.get(one.name, _default(one))
        _add_flag(parser, one, _unwrapped(hints[one.name]), default)


def read_settings(args: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The dataclass filled from parsed flags."""
    values = {one.name: getattr(args, one.name) for one in fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def write_settings(folder: Path, settings: Any) -> None:
    """`settings.json` beside the results, so that one can tell later what made them."""
    write_json(folder / "settings.json", asdict(settings), indent=1)


def _add_flag(parser: argparse._ActionsContainer, one: Field[Any], kind: Any, default: object) -> None:
    names = (*SHORT.get(one.name, ()), f"--{one.name.replace('_', '-')}")
    required = default is MISSING
    options: dict[str, Any] = {"dest": one.name, "required": required, "help": _help(one, default)}
    if not required:
        options["default"] = default
    if kind is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
    elif get_origin(kind) is tuple:
        options["default"] = None if required else list(default)  # type: ignore[call-overload]
        kind = get_args(kind)[0]
        parser.add_argument(*names, action=_Append, type=_converter(kind), metavar=_metavar(kind), **options)
    else:
        parser.add_argument(*names, type=_converter(kind), metavar=_metavar(kind), **options)


class _Append(argparse.Action):
    """Each use adds a value; the first replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        held = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if held is self.default else [*held, values])


def _default(one: Field[Any]) -> object:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _unwrapped(hint: Any) -> Any:
    """`X | None` as X."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _converter(kind: Any) -> Callable[[str], Any]:
    if kind not in (int, float, str, Path):
        raise TypeError(f"a setting must be int, float, str, Path, bool, a tuple of these or one or None, got {kind}")
    converter: Callable[[str], Any] = kind
    return converter


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _help(one: Field[Any], default: object) -> str:
    text = str(one.metadata["help"])
    if default is MISSING:
        text += " (required)"
    elif default is not None and default != () and not isinstance(default, bool):
        values = default if isinstance(default, tuple) else (default,)
        shown = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        text += f" (default: {shown})"
    return text.replace("%", "%%")
