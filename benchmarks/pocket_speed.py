"""How fast the pocket model is: encode, click, import, and the whole command from a cold start.

    python benchmarks/pocket_speed.py --threads 2 --output docs/pocket_speed.json

Prints a table and writes a Report. Medians; a peer with the same job stands beside each where one can be had without a
download: transformers' SAM 2 (Hiera-tiny, random weights: speed does not depend on them) at its own 1024 pixels.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image as PillowImage

import anymask
from anymask import Image, Prompt
from anymask.evaluation.reports import machine, versions, write_report
from anymask.prompting import predict
from anymask.types import Report


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peer", action="store_true", help="measure transformers' SAM 2.1 tiny beside it")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    metrics = {**pocket(args.repeats), **cold_start()}
    if args.peer:
        metrics |= sam2_tiny(3)
    for name, value in metrics.items():
        print(f"{name:24s} {value:10.1f}")
    if args.output:
        settings = {"threads": args.threads, "repeats": args.repeats, "peer": args.peer}
        write_report(args.output, Report("pocket speed", metrics, settings, versions=versions(), machine=machine()))


def pocket(repeats: int) -> dict[str, float]:
    """Medians in ms of encoding a 640 x 480 photo and of one click on it."""
    model = anymask.load("pocket", device="cpu")
    image = Image(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
    features = model.encode([image])[0]
    return {
        "encode_ms": timed(lambda: model.encode([image]), repeats),
        "click_ms": timed(lambda: predict(model, features, [Prompt.point(320, 240)]), repeats),
        "32_clicks_ms": timed(lambda: predict(model, features, [Prompt.point(10 * i, 200) for i in range(32)]), 5),
    }


def cold_start() -> dict[str, float]:
    """`import anymask` in ms; `anymask segment photo.jpg --box` in s, with its peak memory in MB (new processes)."""
    bare = [seconds([sys.executable, "-c", "pass"])[0] for _ in range(5)]
    imported = [seconds([sys.executable, "-c", "import anymask"])[0] for _ in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        PillowImage.fromarray(np.full((480, 640, 3), 128, np.uint8)).save(photo)
        command = [sys.executable, "-m", "anymask", "segment", str(photo), "--box", "40,30,600,410", "-o", folder]
        runs = [seconds(command) for _ in range(3)]
    return {
        "import_ms": 1000 * (median(imported) - median(bare)),
        "segment_cold_s": median(run[0] for run in runs),
        "segment_peak_mb": max(run[1] for run in runs),
    }


def sam2_tiny(repeats: int) -> dict[str, float]:
    """The same two jobs by transformers' SAM 2.1 Hiera-tiny with random weights."""
    from transformers import Sam2Config, Sam2Model

    peer = Sam2Model(Sam2Config()).eval()
    pixels = torch.zeros(1, 3, 1024, 1024)
    points, labels = torch.full((1, 1, 1, 2), 500.0), torch.ones(1, 1, 1, dtype=torch.long)
    with torch.inference_mode():
        embeddings = peer.get_image_embeddings(pixels)

        def click() -> object:
            return peer(image_embeddings=embeddings, input_points=points, input_labels=labels)

        encode = timed(lambda: peer.get_image_embeddings(pixels), repeats)
        return {"sam2_tiny_encode_ms": encode, "sam2_tiny_click_ms": timed(click, repeats)}


def timed(job: Callable[[], object], repeats: int) -> float:
    """The median in ms, after a warm-up."""
    job()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a process, and its peak memory in MB."""
    import psutil

    start, peak = time.perf_counter(), 0.0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss / 1e6)
        except psutil.Error:
            break
        time.sleep(0.01)
    if process.wait() != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, peak


if __name__ == "__main__":
    main()
