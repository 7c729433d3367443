"""Everything in a photo: every mask that a grid of clicks finds, as they come, and as the records of SAM.

Run it with a folder for the results (out/ without one).
"""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask.automatic import collect, everything_steps, to_records
from anymask.automatic_settings import AutomaticSettings


def main(folder: Path) -> None:
    """`anymask.everything(image)` is the same in one call; here its steps are followed, and could be stopped."""
    image = anymask.read_image(data.coffee())
    steps = []
    for step in everything_steps(image, anymask.load("pocket"), AutomaticSettings(points_per_side=8)):
        print(f"{step.done} of {step.total} clicks")
        steps.append(step)
    masks = collect(iter(steps), image.size)

    sure = masks[masks.scores > 0.5]
    for path in anymask.save(sure, image, folder, "coffee", ["coco", "labelmap", "overlay", "sheet"]):
        print(path)
    for record in to_records(sure[:3], "coco_rle"):
        print(record["bbox"], record["area"], record["predicted_iou"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
