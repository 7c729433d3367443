"""The tables of the model card, in Markdown, from the report of an evaluation.

python benchmarks/pocket_card.py --report docs/pocket_val.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

MEASURES = (
    ("box mIoU", "box_miou"),
    ("box boundary IoU", "box_boundary_iou"),
    ("1 click mIoU", "click1_miou"),
    ("1 click, best of three", "click1_best_miou"),
    ("3 clicks mIoU", "click3_miou"),
    ("5 clicks mIoU", "click5_miou"),
    ("NoC@80", "noc80"),
    ("NoC@85", "noc85"),
    ("text mIoU (names present)", "text_miou"),
    ("text false positives (names absent)", "text_false_positive_rate"),
    ("text precision of pixels", "text_precision"),
    ("text recall of pixels", "text_recall"),
    ("presence ROC AUC", "text_presence_auc"),
    ("calibration error of predicted IoU, box", "box_calibration_error"),
    ("calibration error of predicted IoU, 1 click", "click1_calibration_error"),
)
OF_SOURCES = (
    *("images", "masks", "box_miou", "box_boundary_iou", "click1_miou", "click3_miou", "click5_miou", "noc80"),
    *("text_miou", "text_false_positive_rate"),
)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, required=True)
    report = json.loads(parser.parse_args().report.read_text())
    print(f"| measure | {counted(report, '')}, training sources | {counted(report, '_unseen')}, unseen sources |")
    print("|---|---|---|")
    for title, measure in MEASURES:
        print(f"| {title} | {cell(report, measure, '')} | {cell(report, measure, '_unseen')} |")
    print("\n| source | " + " | ".join(OF_SOURCES) + " |\n|" + "---|" * (len(OF_SOURCES) + 1))
    for row in report["sources"]:
        print(f"| {row['source']} | " + " | ".join(plain(row[name]) for name in OF_SOURCES) + " |")


def counted(report: dict[str, Any], suffix: str) -> str:
    """How many masks and images stand behind a column."""
    return f"{report['masks' + suffix]:,} masks on {report['images' + suffix]} images"


def cell(report: dict[str, Any], measure: str, suffix: str) -> str:
    """Mean [95 % interval over images]; mean of the sources."""
    text = plain(report[measure + suffix])
    low, high = (report.get(f"{measure}_ci95_{end}{suffix}") for end in ("low", "high"))
    of_sources = report.get(f"{measure}_source_mean{suffix}")
    text += "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return text if of_sources is None else f"{text}; {of_sources:.3f}"


def plain(value: float | int | None) -> str:
    """Three decimals, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
