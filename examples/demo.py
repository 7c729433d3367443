"""What `make demo` runs: four photos by text, by a click and by a box, with the model that ships inside anymask.

Results lie in the folder named on the command line (demo/ without one): for each photo and prompt an overlay to look
at, a COCO file, and a label map.
"""

import sys
import time
from pathlib import Path

from skimage import data

import anymask
from anymask import Masks, Prompt

PHOTOS = {
    "chelsea": (Prompt.text("cat"), Prompt.point(170, 115), Prompt.box(0, 0, 375, 300)),
    "coffee": (Prompt.text("cup"), Prompt.point(365, 285), Prompt.box(172, 15, 410, 310)),
    "astronaut": (Prompt.text("person"), Prompt.point(110, 330), Prompt.box(350, 0, 458, 285)),
    "rocket": (Prompt.text("rocket"), Prompt.point(321, 250), Prompt.box(304, 122, 344, 408)),
}
KINDS = ("text", "click", "box")


def main(folder: Path) -> None:
    """Segments every photo by every prompt, saves the results and says what was found where."""
    started = time.perf_counter()
    model = anymask.load("pocket")
    for name, prompts in PHOTOS.items():
        image = anymask.read_image(getattr(data, name)())  # of scikit-image
        for kind, prompt in zip(KINDS, prompts, strict=True):
            masks = anymask.segment(image, prompt, model=model)
            anymask.save(masks, image, folder, f"{name}-{kind}", ["overlay", "coco", "labelmap"], prompts=[prompt])
            print(f"{name:10s} {kind:6s} {described(prompt):24s} {found(masks)}")
    print(f"Overlays, COCO files and label maps are in {folder}/ ({time.perf_counter() - started:.1f} s)")


def described(prompt: Prompt) -> str:
    """The prompt in a few signs."""
    if prompt.name is not None:
        return f'"{prompt.name}"'
    numbers = prompt.point_coords[0].tolist() if prompt.box_coords is None else prompt.box_coords
    return ",".join(f"{number:g}" for number in numbers)


def found(masks: Masks) -> str:
    """The box and size of every mask."""
    rows = zip(masks.boxes.tolist(), masks.areas.tolist(), masks.scores.tolist(), strict=True)
    places = [
        f"{area} pixels in {x0:g},{y0:g},{x1:g},{y1:g} (score {score:.2f})" for (x0, y0, x1, y1), area, score in rows
    ]
    return "; ".join(places) or "nothing"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
