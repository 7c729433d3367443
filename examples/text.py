"""Names: all instances of each name, or with `semantic` one mask a name. A name that is not there gives no mask."""

import sys
from pathlib import Path

from skimage import data

import anymask

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.astronaut())

masks = anymask.segment(image, text=["person", "banana"], not_text="flag")
for label, score, area in zip(masks.labels, masks.scores, masks.areas, strict=True):
    print(f"{label}: {area} pixels, score {score:.2f}")
if "banana" not in masks.labels:
    print("no banana")

sure = masks[masks.scores > 0.5]
everyone = anymask.segment(image, text="person", semantic=True)
print(f"{len(sure)} sure instances; all persons together: {everyone.areas.sum()} pixels")

folder.mkdir(parents=True, exist_ok=True)
anymask.write_image(folder / "text.png", anymask.draw(image, masks))
