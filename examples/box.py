"""Boxes: each is an object; a box and clicks together are one object; `zoom` looks closer at small ones."""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask import Prompt

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.coffee())

# Boxes are x0, y0, x1, y1 in pixels of the image, the end exclusive.
cup, spoon = (172, 15, 410, 310), (320, 60, 425, 330)
masks = anymask.segment(image, boxes=[cup, spoon])
print(f"cup {masks.areas[0]} pixels, spoon {masks.areas[1]} pixels")

# Prompts of one object are added up: this box, but not the coffee inside.
without_coffee = Prompt.box(*cup) + Prompt.point(295, 140, label=0)
masks = anymask.segment(image, [without_coffee, Prompt.box(*spoon)], zoom=True)

folder.mkdir(parents=True, exist_ok=True)
anymask.write_image(folder / "box.png", anymask.draw(image, masks, prompts=[without_coffee]))
