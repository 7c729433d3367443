"""anymask: one workbench around Segment Anything models.

The names below load their module when first used, so that `import anymask` is fast and needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anymask.automatic import everything
    from anymask.data.coco import read_coco, write_coco
    from anymask.data.concepts import read_concept, save_concept
    from anymask.data.detections import from_supervision, to_supervision
    from anymask.data.drawing import draw
    from anymask.data.exports import save
    from anymask.data.images import find_images, read_image, read_mask, write_image
    from anymask.models.export import export
    from anymask.models.load import load
    from anymask.models.protocol import CheckpointError
    from anymask.segmentation import segment, segment_batch
    from anymask.types import Concept, Exemplar, Features, Image, Masks, Prompt, Report

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Concept",
    "Exemplar",
    "Features",
    "Image",
    "Masks",
    "Prompt",
    "Report",
    "__version__",
    "draw",
    "everything",
    "export",
    "find_images",
    "from_supervision",
    "load",
    "read_coco",
    "read_concept",
    "read_image",
    "read_mask",
    "save",
    "save_concept",
    "segment",
    "segment_batch",
    "to_supervision",
    "write_coco",
    "write_image",
]

# The same names as above, once for type checkers and once for Python; a test compares them.
_HOMES = {
    "anymask.automatic": ("everything",),
    "anymask.data.coco": ("read_coco", "write_coco"),
    "anymask.data.concepts": ("read_concept", "save_concept"),
    "anymask.data.detections": ("from_supervision", "to_supervision"),
    "anymask.data.drawing": ("draw",),
    "anymask.data.exports": ("save",),
    "anymask.data.images": ("find_images", "read_image", "read_mask", "write_image"),
    "anymask.models.export": ("export",),
    "anymask.models.load": ("load",),
    "anymask.models.protocol": ("CheckpointError",),
    "anymask.segmentation": ("segment", "segment_batch"),
    "anymask.types": ("Concept", "Exemplar", "Features", "Image", "Masks", "Prompt", "Report"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'anymask' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those not loaded yet."""
    return sorted({*globals(), *__all__})
