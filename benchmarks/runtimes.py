"""Encoders by runtime and number format on a CPU: seconds an image and memory, beside transformers as it comes.

    python benchmarks/runtimes.py --json                       # a table, and JSON on stdout
    python benchmarks/runtimes.py --models vit-b --output docs/runtimes.json

Weights are random (time does not depend on them) but pocket's. All of a model are measured in turns in one process, and
the median is shown, so that what else the machine does meets all alike.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from anymask.models.graphs import encoder_of, write_onnx
from anymask.models.load import load
from anymask.models.promptable import PromptableModel
from anymask.models.quantising import calibration_images, drawn, quantise
from anymask.models.runtimes import Session, open_session
from anymask.ops.tables import align

ROUNDS = 5
PICTURES = 2  # to calibrate int8 on: enough for time
REFERENCE = "transformers"


@dataclass
class Row:
    """One way to compute one encoder."""

    model: str
    runtime: str
    dtype: str
    seconds: float = 0.0
    speedup: float = 0.0
    peak_megabytes: float = 0.0  # above what was held before, the highest of all rounds
    making_seconds: float = 0.0  # of the graph, once
    times: list[float] = field(default_factory=list)


def measure(
    name: str, rounds: int = ROUNDS, runtimes: Sequence[str] = ("eager", "openvino", "onnxruntime")
) -> list[Row]:
    """A row for each way to compute the encoder of one of `MODELS`."""
    model, reference = MODELS[name]()
    image = drawn((768, 1024), 5)
    pixels = model.preprocess(image, model.frame(image.size))[None]
    with tempfile.TemporaryDirectory() as folder:
        ways = list(_ways(name, model, reference, runtimes, Path(folder)))
        for turn in range(rounds + 1):
            for row, run in ways:
                seconds, megabytes = _timed(lambda run=run: run(pixels))
                row.peak_megabytes = max(row.peak_megabytes, megabytes)
                if turn:  # the first warms up
                    row.times.append(seconds)
    rows = [row for row, _ in ways]
    for row in rows:
        row.seconds = statistics.median(row.times)
        row.speedup = statistics.median(rows[0].times) / row.seconds
    return rows


def _ways(
    name: str, model: PromptableModel, reference: nn.Module, runtimes: Sequence[str], folder: Path
) -> Iterator[tuple[Row, Callable[[torch.Tensor], object]]]:
    yield Row(name, REFERENCE, "float32"), torch.inference_mode()(reference)
    if "eager" in runtimes:
        yield Row(name, "eager", "float32"), torch.inference_mode()(model.embed)
    graphs = [kind for kind in runtimes if kind != "eager"]
    if not graphs:
        return
    whole, making = folder / "encoder.onnx", time.perf_counter()
    write_onnx(encoder_of(model, model.feature_names), whole, optimised=True)
    making = time.perf_counter() - making
    for kind in graphs:
        yield Row(name, kind, "float32", making_seconds=making), _by(open_session(whole, kind))
    if "openvino" in graphs:
        yield Row(name, "openvino", "bfloat16", making_seconds=making), _by(open_session(whole, "openvino", "bfloat16"))
        quantising, eight = time.perf_counter(), folder / "int8.xml"
        computed_in = quantise(whole, eight, model, calibration_images()[:PICTURES])
        making += time.perf_counter() - quantising
        yield (
            Row(name, "openvino", "int8", making_seconds=making),
            _by(open_session(eight, "openvino", computed_in)),
        )


def _by(session: Session) -> Callable[[torch.Tensor], object]:
    return lambda pixels: session.run(pixels.numpy())


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and by how many megabytes memory rose above what was held (Linux; else 0)."""
    before, peaks = _memory("VmRSS"), Path("/proc/self/clear_refs")
    if peaks.exists():
        peaks.write_text("5")
    start = time.perf_counter()
    run()
    return time.perf_counter() - start, _memory("VmHWM") - before


def _memory(kind: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(kind)), 0.0)


def _vit_b() -> tuple[PromptableModel, nn.Module]:
    from transformers import SamConfig, SamModel

    from anymask.models.sam import Sam

    stock = _random(SamModel(SamConfig()).eval())
    lean = SamModel(SamConfig())
    lean.load_state_dict(stock.state_dict(), assign=True)
    return Sam(lean), stock.vision_encoder


def _hiera_tiny() -> tuple[PromptableModel, nn.Module]:
    from transformers import Sam2Config, Sam2Model

    from anymask.models.sam2 import Sam2
    from anymask.models.sam2_keys import config_of

    model = Sam2(_random(Sam2Model(Sam2Config(**config_of("hiera_tiny_2.1")))))
    return model, model.network.vision_encoder


def _tiny_vit() -> tuple[PromptableModel, nn.Module]:
    from anymask.models.mobile import MobileSam, MobileSamConfig, build

    network = build(MobileSamConfig())
    blank = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in network.state_dict().items()}
    network.load_state_dict(blank, assign=True)
    model = MobileSam(_random(network))
    return model, model.network.vision_encoder


def _pocket() -> tuple[PromptableModel, nn.Module]:
    model = load("pocket", "cpu", runtime="eager")
    assert isinstance(model, PromptableModel)
    return model, _Embedding(model)


class _Embedding(nn.Module):
    def __init__(self, model: PromptableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model.embed(pixels)


def _random(network: nn.Module) -> nn.Module:
    """Weights of unit gain, so that no number vanishes or overflows, which would cost time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5)
                if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                    tensor.abs_().add_(1)
    return network


MODELS: Mapping[str, Callable[[], tuple[PromptableModel, nn.Module]]] = {
    "vit-b": _vit_b,
    "hiera-tiny": _hiera_tiny,
    "tiny-vit": _tiny_vit,
    "pocket": _pocket,
}


def _table(rows: Sequence[Row]) -> str:
    lines = [["model", "runtime", "dtype", "ms", "speedup", "peak MB", "made in s"]]
    for row in rows:
        numbers = (
            f"{1000 * row.seconds:.0f}",
            f"{row.speedup:.2f}",
            f"{row.peak_megabytes:.0f}",
            f"{row.making_seconds:.0f}",
        )
        lines.append([row.model, row.runtime, row.dtype, *numbers])
    return align(lines, [False, False, False, True, True, True, True])


def main() -> None:
    """Measures, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        rows += measure(name, args.rounds)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
    }
    found = {"machine": machine, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if args.json else _table(rows))


if __name__ == "__main__":
    main()
