"""The README's page of twelve photos, each with one prompt and the masks that pocket gives for it.

    python benchmarks/pocket_photos.py --output docs/images/photos.jpg

The photos come with scikit-image and scikit-learn: those that show a thing one could ask for. Left out are textures,
documents, drawings, the sky, the moon, second pictures of a scene and the blurred clock. Four prompts are those of the
demo; the other eight were written down before their masks were seen and never changed: twelve photos, twelve tries.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageOps

import anymask
from anymask import Image, Prompt
from anymask.data.drawing import draw
from anymask.segmentation import segment

TILE, CAPTION, COLUMNS = (400, 300), 24, 4
SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"
COINS = ((45, 50), (100, 52), (155, 50), (215, 48), (275, 52), (335, 40))
PAGE: tuple[tuple[str, str, tuple[Prompt, ...], str], ...] = (
    (SKIMAGE, "astronaut.png", (Prompt.text("person"),), 'the name "person"'),
    (SKIMAGE, "camera.png", (Prompt.point(160, 300),), "one click"),
    (SKIMAGE, "cell.png", (Prompt.point(425, 370),), "one click"),
    (SKIMAGE, "chelsea.png", (Prompt.text("cat"),), 'the name "cat"'),
    (SKIMAGE, "coffee.png", (Prompt.box(172, 15, 425, 325),), "a box"),
    (SKIMAGE, "coins.png", tuple(Prompt.point(x, y) for x, y in COINS), "six objects, a click each"),
    (SKIMAGE, "ihc.png", (Prompt.point(310, 410),), "one click"),
    (SKIMAGE, "motorcycle_left.png", (Prompt.box(55, 105, 695, 455),), "a box"),
    (SKIMAGE, "retina.jpg", (Prompt.point(170, 660),), "one click"),
    (SKIMAGE, "rocket.jpg", (Prompt.box(298, 125, 340, 410),), "a box"),
    (SKLEARN, "china.jpg", (Prompt.points([(215, 170), (215, 340)], [1, 1]),), "two clicks"),
    (SKLEARN, "flower.jpg", (Prompt.point(310, 220),), "one click"),
)


def main() -> None:
    """Segments, draws, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="pocket")
    args = parser.parse_args()
    model = anymask.load(args.model, device="cpu")
    tiles = []
    for folder, name, prompts, said in PAGE:
        package, *inside = folder.split("/")
        image = anymask.read_image(Path(str(files(package).joinpath(*inside, name))))
        masks = segment(image, prompts, model=model)
        tiles.append(tile(draw(image, masks, prompts=prompts), f"{name.split('.')[0]}: {said}"))
    page = np.vstack([np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)])
    PillowImage.fromarray(page).save(args.output, quality=88)


def tile(drawn: Image, caption: str) -> np.ndarray:
    """A picture fitted into its tile, with a line of text below."""
    fitted = ImageOps.pad(PillowImage.fromarray(drawn.pixels), TILE, PillowImage.Resampling.LANCZOS, color="white")
    canvas = PillowImage.new("RGB", (TILE[0] + 8, TILE[1] + CAPTION + 8), "white")
    canvas.paste(fitted, (4, 4))
    ImageDraw.Draw(canvas).text((6, TILE[1] + 8), caption, fill=(40, 40, 40), font_size=15)
    return np.asarray(canvas)


if __name__ == "__main__":
    main()
