"""Several images at once, each with its own number of prompts; and a folder of photos, one by one."""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask import Prompt
from anymask.types import Image

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
model = anymask.load("pocket")

cat, coffee = anymask.read_image(data.chelsea()), anymask.read_image(data.coffee())
prompts = [[Prompt.point(170, 115)], [Prompt.box(172, 15, 410, 310), Prompt.point(365, 285)]]
for image, masks in zip((cat, coffee), anymask.segment_batch([cat, coffee], prompts, model=model), strict=True):
    print(f"{image.size}: {len(masks)} masks")

# A folder: find_images gives the photos in it, and a bad one is refused by name while the others go on.
photos = folder / "photos"
anymask.write_image(photos / "cat.png", cat)
anymask.write_image(photos / "coffee.png", Image(coffee.pixels))
(photos / "broken.png").write_bytes(b"no picture")
for path in anymask.find_images([photos]):
    try:
        image = anymask.read_image(path)
    except ValueError as error:
        print(error)
        continue
    masks = anymask.segment(image, text=["cat", "cup"], model=model)
    anymask.save(masks, image, folder / "results", image.name, file_name=path.name)
    print(f"{path.name}: {len(masks)} masks")
