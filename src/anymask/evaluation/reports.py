"""Reports as files and as tables to read, and what a number depends on beside the model: versions and machine.

The file is one flat JSON object: the metrics by name, each table as a list of rows, then title, settings, seed,
versions and machine. It is what `anymask evaluate --json` prints, and `read_report` gives the Report back.

Names of metrics carry their kind at the end: `_ci95_low` and `_ci95_high` are an interval, `_source_mean` is a mean
over sources, `_unseen` is over data the model was not trained on. The summary table folds these into columns.
"""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from anymask.data.files import read_json, write_json
from anymask.ops.tables import align
from anymask.types import Report

PACKAGES = ("anymask", "torch", "torchvision", "transformers", "timm", "numpy", "opencv-python-headless", "pycocotools")
ABOUT = tuple(one.name for one in fields(Report) if one.name not in ("metrics", "tables"))


def to_json(report: Report) -> dict[str, Any]:
    """The flat object of the file."""
    clash = sorted({*report.metrics, *report.tables} & set(ABOUT) | set(report.metrics) & set(report.tables))
    if clash:
        raise ValueError(f"a metric or table must not be called like another part of the report, got {clash[0]!r}")
    about = {name: getattr(report, name) for name in ABOUT}
    return {**report.metrics, **report.tables, **about}


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write `to_json` of it, whole or not at all."""
    write_json(path, to_json(report), indent=1)


def read_report(path: str | os.PathLike[str]) -> Report:
    """A Report that was written; `ValueError` for a file that holds none."""
    content = read_json(path)
    missing = [name for name in ABOUT if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{os.fspath(path)} must be a report of anymask evaluate, but it has no {missing[0]!r}")
    rest = {key: value for key, value in content.items() if key not in ABOUT}
    return Report(
        metrics={key: value for key, value in rest.items() if not isinstance(value, list)},
        tables={key: value for key, value in rest.items() if isinstance(value, list)},
        **{name: content[name] for name in ABOUT},
    )


def to_text(report: Report, tables: Sequence[str] = ("sources",)) -> str:
    """For a terminal: the summary, the named tables, and a line on how it was measured."""
    return "\n\n".join([report.title, *(_aligned(rows) for rows in _shown(report, tables)), origin(report)])


def to_markdown(report: Report, tables: Sequence[str] = ("sources",)) -> str:
    """The same for a model card."""
    return "\n\n".join([*(piped(rows) for rows in _shown(report, tables)), origin(report)]) + "\n"


def summary_rows(report: Report) -> list[dict[str, Any]]:
    """A row per metric: its value, interval and source mean, and the same over unseen data; empty columns left out."""
    bases = [key for key in report.metrics if not key.endswith(("_unseen", "_ci95_low", "_ci95_high", "_source_mean"))]
    rows = [
        {"measure": base} | _summary_cells(report.metrics, base, "") | _summary_cells(report.metrics, base, "_unseen")
        for base in bases
    ]
    kept = [column for column in (rows[0] if rows else ()) if any(row[column] is not None for row in rows)]
    return [{column: row[column] for column in kept} for row in rows]


def piped(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[_cell(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(report: Report) -> str:
    """A line on how it was measured: seed, machine, versions."""
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    place = report.machine.get("gpu") or report.machine.get("processor") or "unknown machine"
    return f"Seed {report.seed}; {place}, {report.machine.get('cores')} cores; {packages}."


def plain(settings: Any) -> dict[str, Any]:
    """The settings of a run, a dataclass, as JSON can hold them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the times depend on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_rss_mb() -> float:
    """The most memory (resident set) that this process has held so far."""
    if sys.platform == "win32":
        return round(float(psutil.Process().memory_info().peak_wset) / 2**20, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux kilobytes


def rss_mb() -> float:
    """The memory (resident set) that this process holds now."""
    return round(float(psutil.Process().memory_info().rss) / 2**20, 1)


def _summary_cells(metrics: Mapping[str, Any], base: str, group: str) -> dict[str, Any]:
    low, high = metrics.get(f"{base}_ci95_low{group}"), metrics.get(f"{base}_ci95_high{group}")
    title = group.replace("_", "")
    return {
        title or "value": metrics.get(base + group),
        f"{title} 95%".strip(): None if low is None or high is None else f"{_cell(low)} to {_cell(high)}",
        f"{title} source mean".strip(): metrics.get(f"{base}_source_mean{group}"),
    }


def _shown(report: Report, tables: Sequence[str]) -> list[Sequence[Mapping[str, Any]]]:
    """The summary and the named tables, as far as they have a row."""
    return [rows for rows in (summary_rows(report), *(report.tables.get(name, ()) for name in tables)) if rows]


def _aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns under their names; a long name stands in several lines, so that many columns fit."""
    columns = list(rows[0])
    heads = [column.replace("_", " ").split() for column in columns]
    deep = max(len(head) for head in heads)
    lines = [[head[i - deep + len(head)] if i >= deep - len(head) else "" for head in heads] for i in range(deep)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return align(lines, [isinstance(rows[0][column], str) and i == 0 for i, column in enumerate(columns)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def _processor() -> str:
    """The name on the chip where Linux tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
