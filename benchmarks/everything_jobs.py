"""One measurement of benchmarks/everything.py, in a process of its own: `everything_jobs.py JOB.json RESULT.json`.

A fresh process for each, so that neither memory nor caches of one contender reach the next. Seconds are those of the
second call, after a warm-up of four clicks on a thumbnail: imports, loading and compiling do not count. Peak memory is
the resident set above that of the loaded model (every tensor touched, nothing run yet), the warm-up included: Linux
counts it (`VmHWM`), elsewhere a thread looks every 5 ms.
"""

import gc
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image as PillowImage

from everything_peers import CONTENDERS, Contender, anymask_encoder, load_anymask, plain, transformers_encoder

WARM_UP = 96  # longest side of the thumbnail
PACKAGES = {"segment_anything": "segment-anything-py"}  # where the package is called otherwise than the contender


def main(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of one job; `error` says in a line why there is none."""
    torch.set_num_threads(job["threads"])
    try:
        return JOBS[job["kind"]](job)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            return {"error": f"out of memory ({psutil.virtual_memory().total / 2**30:.0f} GB)"}
        raise
    except (ImportError, ValueError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def run_everything(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, peak memory and masks of one contender on one photo."""
    contender = load_contender(job)
    pixels = photo(job["side"])
    with peak_memory() as memory:
        warm_up(contender)
        start = time.perf_counter()
        found = contender.everything(pixels, job["settings"])
        seconds = time.perf_counter() - start
    rles = [plain(one) for one in contender.rles(found)]
    name = job["contender"].split()[0]
    version = metadata.version(PACKAGES.get(name, name))
    kept = {"rles": rles} if job["keep_masks"] else {}
    return {"version": version, "seconds": seconds, "masks": len(rles), **memory, **kept}


def run_scores(job: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted IoU and stability of every candidate of every grid point, by the authors' code: for thresholds."""
    from segment_anything import SamPredictor, sam_model_registry
    from segment_anything.utils.amg import batch_iterator, build_point_grid, calculate_stability_score

    predictor = SamPredictor(sam_model_registry["vit_b"](job["weights"]))
    pixels = photo(job["side"])
    predictor.set_image(pixels)
    points = build_point_grid(job["points_per_side"]) * pixels.shape[1::-1]
    ious, stabilities = [], []
    for (batch,) in batch_iterator(64, points):
        clicks = torch.as_tensor(predictor.transform.apply_coords(batch, pixels.shape[:2]))[:, None]
        masks, iou, _ = predictor.predict_torch(clicks, torch.ones(len(batch), 1), return_logits=True)
        ious += iou.tolist()
        stabilities += calculate_stability_score(masks, 0.0, 1.0).nan_to_num(0).tolist()
    return {"predicted_iou": ious, "stability_score": stabilities}


def run_weights(job: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the file of weights that all contenders load."""
    from everything_weights import make_weights

    make_weights(Path(job["weights"]), photo(job["side"]), job["seed"])
    return {}


def run_encode(job: Mapping[str, Any]) -> dict[str, Any]:
    """Median seconds from the photo's pixels to its embedding."""
    pixels = photo(job["side"])
    if job["contender"] == "transformers":
        encode = transformers_encoder(Path(job["weights"]), pixels)
    else:
        encode = anymask_encoder(Path(job["weights"]), pixels, job["loading"])
    return {"seconds": timed(encode, job["repeats"])}


def run_curve(job: Mapping[str, Any]) -> dict[str, Any]:
    """Median seconds for each photo size and grid of the job, in one process."""
    contender = load_contender(job)
    seconds = []
    for side, settings in job["cases"]:
        pixels = photo(side)
        seconds.append(timed(lambda pixels=pixels, settings=settings: contender.everything(pixels, settings), 3))
    return {"seconds": seconds}


def run_recall(job: Mapping[str, Any]) -> dict[str, Any]:
    """Masks of the default mode beside those of `exact=True`: how many of these have a partner, photo by photo."""
    from anymask import read_image
    from everything_report import recalled

    default, exact = load_anymask(job["model"]), load_anymask(job["model"], exact=True)
    rows = []
    for path in job["images"]:
        pixels = read_image(path).pixels
        found, wanted = (one.rles(one.everything(pixels, {})) for one in (default, exact))
        counts = {"exact": len(wanted), "default": len(found), "recalled": recalled(found, wanted)}
        rows.append({"image": Path(path).name, **counts})
    return {"images": rows}


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "weights": run_weights,
    "scores": run_scores,
    "everything": run_everything,
    "encode": run_encode,
    "curve": run_curve,
    "recall": run_recall,
}


def load_contender(job: Mapping[str, Any]) -> Contender:
    """Ready, every tensor in memory, and from here on held to the memory that the machine has left."""
    weights = job["weights"] if job["weights"] == "pocket" else Path(job["weights"])
    contender = CONTENDERS[job["contender"]](weights, **job.get("loading", {}))
    for tensor in contender.weights():
        tensor.sum()
    gc.collect()
    limit_memory()
    return contender


def warm_up(contender: Contender) -> None:
    """Four clicks on a thumbnail, of which everything is kept."""
    settings = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    contender.everything(photo(WARM_UP), settings)


def timed(job: Callable[[], object], repeats: int) -> float:
    """Median seconds after a warm-up."""
    job()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return median(times)


def photo(side: int) -> np.ndarray:
    """The cup of coffee of scikit-image, its longest side brought to `side`."""
    from skimage import data

    picture = PillowImage.fromarray(data.coffee())
    scale = side / max(picture.size)
    w, h = (round(length * scale) for length in picture.size)
    return np.asarray(picture.resize((w, h), PillowImage.Resampling.BICUBIC))


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Fills `base_mb` (resident now) and, at the end of the block, `peak_mb` (the most above it)."""
    base = psutil.Process().memory_info().rss
    found = {"base_mb": base / 2**20}
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
        yield found
        status = Path("/proc/self/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 2**10  # type: ignore[index]
    else:
        with sampled() as most:
            yield found
        peak = most[0]
    found["peak_mb"] = (peak - base) / 2**20


@contextmanager
def sampled() -> Iterator[list[int]]:
    """The highest resident set that a thread sees."""
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], psutil.Process().memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def limit_memory() -> None:
    """An allocation beyond the memory that is left fails in this process, instead of ending another one."""
    if sys.platform != "linux":
        return
    import resource

    memory = psutil.Process().memory_info()
    limit = memory.vms + psutil.virtual_memory().available - 2**29
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    job_file, result_file = (Path(name) for name in sys.argv[1:])
    result_file.write_text(json.dumps(main(json.loads(job_file.read_text()))))
