"""What a step of textual inversion costs beside one forward and backward of text transformer, fusion and decoder.

    python benchmarks/concept_speed.py --images DIR --masks DIR --output docs/concept_speed.json

Both take the same images, features in memory, in turns, step by step; the ratio is that of the medians. SAM 3 is of
full size with random weights and random features in place of an encoded image, one image a step (--sam3).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anymask.adapting.inversion import Inversion
from anymask.adapting.settings import InversionSettings
from anymask.data.files import write_json
from anymask.evaluation import reports
from anymask.models.load import load
from anymask.models.sam3 import Sam3
from anymask.models.sam3_text import read_tokenizer


def main() -> None:
    """Parses, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sam3", action="store_true", help="SAM 3 at full size too: 8 GB, some minutes")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [measure(load("pocket"), args, batch, args.steps) for batch in (1, 8, 16)]
    if args.sam3:
        rows.append(measure(random_sam3(), args, 1, 3))
    print(reports.piped(rows))
    if args.output:
        machine = {"machine": reports.machine(), "versions": reports.versions(), "threads": torch.get_num_threads()}
        write_json(args.output, {"rows": rows, **machine}, indent=1)


def measure(model: Any, args: argparse.Namespace, batch: int, steps: int) -> dict[str, Any]:
    """Medians of a step and of the bare way there and back, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = InversionSettings(
            images=args.images, masks=args.masks, output=Path(folder), seed_text="red thing", batch_size=batch,
            steps=10**6, val_share=0, model=model.name, views=1,
        )  # fmt: skip
        run = Inversion(settings, model=model)
        examples = run.examples.of_step(0)
        kept = [run._features(one.pair.image, one.pair.masks.size, one.view) for one in examples]
        features = {name: torch.cat([one[name] for one in kept]) for name in kept[0]}
        for turn in range(-(-len(run.learn) // batch)):  # all features are in memory before a clock runs
            for one in run.examples.of_step(turn):
                run._features(one.pair.image, one.pair.masks.size, one.view)

        def bare() -> None:
            vectors = run.vectors.detach().requires_grad_(True)
            for start in range(0, batch, 8 if run.space.unions else 1):
                part = {name: tensor[start : start + 8] for name, tensor in features.items()}
                answers = run.space.answer(part, vectors)
                parts = [answers.logits, answers.scores, answers.presence, answers.boxes]
                torch.stack([one.sum() for one in parts if one is not None]).sum().backward()

        pairs = [(seconds(run._step), seconds(bare)) for _ in range(steps + 1)][1:]
    step, alone = (1000 * statistics.median(one) for one in zip(*pairs, strict=True))
    ratios = sorted(one / other for one, other in pairs)
    return {
        "model": model.name, "images a step": batch, "steps": steps, "step ms": round(step, 1),
        "bare ms": round(alone, 1), "ratio": round(step / alone, 3), "ratio, worst of all steps": round(ratios[-1], 3),
    }  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def random_sam3() -> Sam3:
    """Of full size; the encoder gives noise, as it takes no part in a step."""
    model = Sam3.without_weights({"model_type": "sam3"}, "SAM 3 detector, random weights")
    generator = torch.Generator().manual_seed(0)
    missing = {name: one for name, one in model.network.state_dict().items() if one.is_meta}
    random = {name: 0.02 * torch.randn(one.shape, generator=generator) for name, one in missing.items()}
    model.network.load_state_dict(random, strict=False, assign=True)
    model.network.requires_grad_(False)
    model.device = "cpu"
    model.__dict__["tokenizer"] = read_tokenizer(Path())
    sides = (288, 144, 72)
    model.embed = lambda pixels: {  # type: ignore[method-assign]
        f"detector_{i}": torch.randn(len(pixels), 256, side, side) for i, side in enumerate(sides)
    }
    return model


if __name__ == "__main__":
    main()
