"""Names for any model: a detector finds boxes, the model makes masks, a scorer judges them; here with pocket alone.

With weights at hand: `model="sam2.1-hiera-tiny", detector="grounding-dino-tiny"`.
"""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask.grounding.loading import load_grounding

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.chelsea())

model = anymask.load("pocket")
finder = load_grounding("windows", scorer=["pocket"], model=model)  # loaded once, for any number of images
masks = anymask.segment(image, text=["cat", "dog"], not_text="pillow", model=model, detector=finder)

for row in masks.to_coco():
    parts = ", ".join(f"{name} {value:.2f}" for name, value in row["measures"].items())
    print(f"{row['label']} {row['score']:.2f}: {parts}")
for name, score in masks.made_by["nearest"].items():
    print(f"no {name}: {score:.2f} of {masks.made_by['thresholds'][name]:.2f}")
print("seconds:", masks.made_by["seconds"])

anymask.save(masks, image, folder, "grounding", ["coco", "panels"])
