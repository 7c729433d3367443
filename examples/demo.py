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
    "chelsea-text": Prompt.text("cat"),
    "chelsea-click": Prompt.point(170, 115),
    "coffee-text": Prompt.text("bowl"),
    "coffee-click": Prompt.points([(290, 60), (365, 285)], [1, 0]),
    "coffee-box": Prompt.box(172, 15, 410, 310),
    "astronaut-text": Prompt.text("person"),
    "astronaut-click": Prompt.points([(110, 330), (420, 420)], [1, 0]),
    "astronaut-box": Prompt.box(350, 0, 458, 285),
    "rocket-click": Prompt.points([(322, 150), (322, 220), (322, 300), (322, 380)]),
    "rocket-box": Prompt.box(304, 122, 344, 408),
}


def main(folder: Path) -> None:
    """Segments every photo by every prompt, saves the results and says what was found where."""
    started = time.perf_counter()
    model = anymask.load("pocket")
    for name, prompt in PHOTOS.items():
        image = anymask.read_image(getattr(data, name.split("-")[0])())
        masks = anymask.segment(image, prompt, model=model)
        anymask.save(masks, image, folder, name, ["overlay", "coco", "labelmap"], prompts=[prompt])
        print(f"{name:16s} {described(prompt):26s} {found(masks)}")
    print(f"Overlays, COCO files and label maps are in {folder}/ ({time.perf_counter() - started:.1f} s)")


def described(prompt: Prompt) -> str:
    """The prompt in a few signs."""
    if prompt.name is not None:
        return f'"{prompt.name}"'
    if prompt.box_coords is not None:
        return "box " + ",".join(f"{side:g}" for side in prompt.box_coords)
    return f"clicks {prompt.point_labels.tolist()}"


def found(masks: Masks) -> str:
    """The box and size of every mask."""
    rows = zip(masks.areas, masks.boxes.astype(int).tolist(), masks.scores, strict=True)
    return "; ".join(f"{area} pixels in {box} (score {score:.2f})" for area, box, score in rows) or "nothing"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
