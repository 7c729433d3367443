"""The picture at the top of README: four photos that come with scikit-image, segmented by pocket, side by side."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from skimage import data

import anymask
from anymask import Prompt

TILES = (
    ("chelsea", [Prompt.text("cat")]),
    ("coffee", [Prompt.box(172, 15, 410, 310) + Prompt.points([(365, 285), (200, 290)], [0, 0])]),
    ("astronaut", [Prompt.text("person"), Prompt.text("hair"), Prompt.box(350, 0, 458, 285)]),
    ("rocket", [Prompt.box(304, 122, 344, 408)]),
)
HEIGHT = 300


def main(folder: Path) -> None:
    """Segments, draws, and saves one row of pictures."""
    model = anymask.load("pocket")
    tiles = []
    for photo, prompts in TILES:
        image = anymask.read_image(getattr(data, photo)())
        drawn = anymask.draw(image, anymask.segment(image, prompts, model=model), prompts=prompts)
        h, w = image.size
        tiles.append(np.asarray(PillowImage.fromarray(drawn.pixels).resize((w * HEIGHT // h, HEIGHT))))
    folder.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(np.hstack(tiles)).save(folder / "masks.png")
    print(f"wrote {folder / 'masks.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
