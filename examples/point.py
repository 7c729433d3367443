"""A click on an object, and a second one that says what does not belong to it."""

import sys
from pathlib import Path

from skimage import data

import anymask

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.chelsea())  # or the path of a photo

# Points are x, y in pixels of the image; label 1 is the object, 0 what is not part of it.
masks = anymask.segment(image, points=[(200, 150), (420, 40)], point_labels=[1, 0])
print(f"one object of {masks.areas[0]} pixels, predicted IoU {masks.scores[0]:.2f}")

# One click can mean an eye, a head or a cat: multimask gives three guesses, and best() the surest of them.
guesses = anymask.segment(image, points=[(170, 115)], multimask=True)
for guess in guesses:
    print(f"  a guess: {guess.areas[0]} pixels, predicted IoU {guess.scores[0]:.2f}")
best = guesses.best()

folder.mkdir(parents=True, exist_ok=True)
anymask.write_image(folder / "point.png", anymask.draw(image, best, prompts=[anymask.Prompt.point(170, 115)]))
