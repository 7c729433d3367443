"""Fine-tune the pocket model on your own images and masks, then segment with what it learned."""

import sys
from pathlib import Path

import numpy as np
from skimage import data, filters, measure

import anymask
from anymask import Image
from anymask.data.labelmaps import from_labelmap, write_labelmap
from anymask.training.promptable import FinetuneSettings, Finetuning

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")

# A small set to learn from: parts of a photo of coins, each with a label map in which every coin has its number.
coins = data.coins()
for i, (y, x) in enumerate(np.ndindex(2, 3)):
    part = coins[150 * y : 150 * y + 150, 128 * x : 128 * x + 128]
    found = from_labelmap(measure.label(filters.gaussian(part, 2) > filters.threshold_otsu(part) / 255))
    anymask.write_image(folder / "images" / f"part{i}.png", Image(np.stack([part] * 3, axis=2)))
    write_labelmap(folder / "masks" / f"part{i}.png", found[found.areas > 200])

settings = FinetuneSettings(
    images=folder / "images",
    masks=folder / "masks",
    output=folder / "run",
    learn=("decoder",),
    steps=20,
    warmup=5,
    validate_every=10,
    val_share=0.2,
)
run = Finetuning(settings)
print("\n".join(run.remarks()))
for record in run.steps():
    if "box_miou" in record.metrics:
        box, click = record.metrics["box_miou"], record.metrics["click1_miou"]
        print(f"step {record.step}: mean IoU {box:.3f} by a box, {click:.3f} by a click")

image = anymask.read_image(folder / "images" / "part1.png")
masks = anymask.segment(image, boxes=[(2, 10, 60, 70)], model=str(run.weights))
anymask.write_image(folder / "finetune.png", anymask.draw(image, masks))
