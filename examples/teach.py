"""Teach the pocket model a phrase for something without a name, from photos and masks, and prompt with it."""

import sys
from pathlib import Path

import numpy as np
from skimage import data, filters, measure

import anymask
from anymask import Image
from anymask.adapting.inversion import Inversion
from anymask.adapting.records import write_run
from anymask.adapting.settings import InversionSettings
from anymask.data.labelmaps import from_labelmap, write_labelmap

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")

# A small set to learn from: parts of a photo of coins, each with a label map in which every coin has its number.
coins = data.coins()
for i, (y, x) in enumerate(np.ndindex(2, 3)):
    part = coins[150 * y : 150 * y + 150, 128 * x : 128 * x + 128]
    found = from_labelmap(measure.label(filters.gaussian(part, 2) > filters.threshold_otsu(part) / 255))
    anymask.write_image(folder / "images" / f"part{i}.png", Image(np.stack([part] * 3, axis=2)))
    write_labelmap(folder / "masks" / f"part{i}.png", found[found.areas > 200])

settings = InversionSettings(
    seed_text="old coin",
    images=folder / "images",
    masks=folder / "masks",
    output=folder / "run",
    tokens=3,
    steps=20,
    batch_size=3,
    validate_every=10,
    val_share=0.2,
)
run = Inversion(settings)
print("\n".join(run.remarks()))
for record in run.steps():
    if "judged_iou" in record.metrics:
        print(f"step {record.step}: mean IoU {record.metrics['judged_iou']:.3f}")
write_run(run, run.judge(run.best))

image = anymask.read_image(folder / "images" / "part1.png")
masks = anymask.segment(image, anymask.Prompt.concept(run.concept), semantic=True)
anymask.write_image(folder / "teach.png", anymask.draw(image, masks))
amid = anymask.Prompt.text("an <old coin> on the left", concepts=[run.concept])
print(len(anymask.segment(image, amid)), "masks of", amid.title)
