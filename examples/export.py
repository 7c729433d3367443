"""One result in every format, and back: COCO with holes, label maps, YOLO, LabelMe, arrays, supervision."""

import sys
from pathlib import Path

from skimage import data

import anymask
from anymask.data.exports import FORMATS, lost_by

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
image = anymask.read_image(data.coffee())
masks = anymask.segment(image, boxes=[(172, 15, 410, 310), (320, 60, 425, 330)])

for path in anymask.save(masks, image, folder, "coffee", list(FORMATS), file_name="coffee.jpg"):
    print(path.name)
for name in FORMATS:
    lost = lost_by(masks, name)
    print(f"{name} keeps {'everything' if not lost else 'all but ' + ', '.join(lost)}")

# Back from the COCO file: the same masks, bit for bit.
coco = anymask.read_coco(folder / "coffee.json")
again = coco.masks(coco.images[0])
assert (again.masks == masks.masks).all()

# For other libraries: NumPy arrays, COCO dicts, supervision.Detections.
print(masks.masks.shape, masks.to_coco()[0]["bbox"], len(anymask.to_supervision(masks)))
