"""Everything in a photo: every mask that a grid of clicks finds, saved as COCO, label map, overlay and contact sheet.

Run it with a folder for the results (out/ without one).
"""

import sys
from pathlib import Path

from skimage import data

import anymask


def main(folder: Path) -> None:
    """All masks of a photo, those of one kind, and the records of SamAutomaticMaskGenerator."""
    image = anymask.read_image(data.coffee())
    masks = anymask.everything(image, model="pocket", points_per_side=8)
    print(f"{len(masks)} masks, of {masks.areas.min(initial=image.pixels.size)} pixels and more")

    sure = masks[masks.scores > 0.6]
    for path in anymask.save(sure, image, folder, "coffee", ["coco", "labelmap", "overlay", "sheet"]):
        print(path)

    records = anymask.everything(image, points_per_side=4, output_mode="coco_rle")
    print(sorted(records[0]) if records else "no records")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
