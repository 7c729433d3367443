"""Correct a result by clicks: encode the image once, then pass each result back with the next click."""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask import Prompt
from anymask.prompting import predict

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.rocket())
model = anymask.load("pocket")

features = model.encode([image])[0]  # the slow part, once
clicks = Prompt.point(321, 250)
masks = predict(model, features, [clicks])
print(f"after 1 click: {masks.areas[0]} pixels")

for x, y, label in [(321, 150, 1), (240, 300, 0)]:
    clicks = clicks + Prompt.point(x, y, label)
    masks = predict(model, features, [clicks + Prompt.refine(masks[0])])
    print(f"after {len(clicks.point_coords)} clicks: {masks.areas[0]} pixels")

folder.mkdir(parents=True, exist_ok=True)
anymask.write_image(folder / "refine.png", anymask.draw(image, masks, prompts=[clicks]))
