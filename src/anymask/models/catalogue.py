"""The models that can be named, and what a user wants to know before choosing one.

Sizes are those of the float32 weights. Licences are those that the authors give on the pages of the weights.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anymask.models.capabilities import MOBILE, SAM, SAM2, SAM3, SAM3_DETECTOR
from anymask.models.pocket import PocketModel
from anymask.models.pocket_files import SHIPPED
from anymask.models.protocol import Capabilities

APACHE, SAM_LICENCE = "Apache-2.0", "SAM License"
RECOMMENDED = "sam2.1-hiera-base-plus"  # where weights may be fetched; it is not gated


@dataclass(frozen=True)
class Entry:
    """One model: the hub id of its weights (`file` if they are one file of an original repository), or `path`."""

    name: str
    family: str
    capabilities: Capabilities
    parameters: float  # millions
    megabytes: float
    licence: str
    note: str
    hub_id: str = ""
    file: str = ""
    gated: bool = False
    path: Path | None = None  # of weights that the package ships

    def describe(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        can = asdict(self.capabilities)
        return {
            "name": self.name,
            "family": self.family,
            "hub_id": self.hub_id or None,
            "parameters_millions": self.parameters,
            "megabytes": self.megabytes,
            "licence": self.licence,
            "gated": self.gated,
            "recommended": self.name == RECOMMENDED,
            "note": self.note,
            "prompts": [kind for kind, able in can.items() if able is True and kind != "named_prompts"],
            "notes": can["notes"],
        }


def named(name: str) -> Entry | None:
    """The entry of a catalogue name or hub id."""
    return CATALOGUE.get(name) or next((entry for entry in CATALOGUE.values() if name and entry.hub_id == name), None)


def nearest(name: str) -> str:
    """For an error: catalogue names that look like `name` or the last part of a hub id, and where all of them are."""
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), CATALOGUE, n=3, cutoff=0.6)
    return (
        f"the nearest known are {', '.join(near)} (anymask models)" if near else "anymask models lists the known ones"
    )


def misspelt(hub_id: str) -> str | None:
    """The hub id of the catalogue that was probably meant by one that is not in it."""
    known = [entry.hub_id for entry in CATALOGUE.values() if entry.hub_id]
    return next(iter(difflib.get_close_matches(hub_id, known, n=1, cutoff=0.85)), None)


def _listed(entries: Mapping[str, tuple[float, str]], family: str, owner: str, note: str) -> list[Entry]:
    """Entries of one kind: the millions of parameters of each, and a note of its own."""
    can = {"sam": SAM, "sam2": SAM2}[family]
    return [
        Entry(name, family, can, millions, round(4 * millions), APACHE, own or note, hub_id=f"{owner}/{name}")
        for name, (millions, own) in entries.items()
    ]


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="pocket",
            family="pocket",
            capabilities=PocketModel.capabilities,
            parameters=9.6,
            megabytes=19.2,
            licence="see the model card: docs/pocket.md",
            note="small, shipped inside the package, works offline: the default",
            path=SHIPPED / "pocket.safetensors",
        ),
        *_listed(
            {
                "sam2.1-hiera-tiny": (38.9, ""),
                "sam2.1-hiera-small": (46.0, ""),
                "sam2.1-hiera-base-plus": (
                    80.8,
                    "recommended where weights may be fetched: the best for points and boxes that is not gated",
                ),
                "sam2.1-hiera-large": (224.4, ""),
                "sam2-hiera-tiny": (38.9, "the first release of SAM 2: take 2.1 unless you compare"),
                "sam2-hiera-small": (46.0, "the first release of SAM 2: take 2.1 unless you compare"),
                "sam2-hiera-base-plus": (80.8, "the first release of SAM 2: take 2.1 unless you compare"),
                "sam2-hiera-large": (224.4, "the first release of SAM 2: take 2.1 unless you compare"),
            },
            "sam2",
            "facebook",
            "SAM 2.1: newer and faster than SAM 1, also for video; original files sam2*.pt work as well",
        ),
        Entry(
            name="edgetam",
            family="sam2",
            capabilities=SAM2,
            parameters=13.9,
            megabytes=56,
            licence=APACHE,
            note="a SAM 2 for small machines: the fastest to encode an image on a CPU after pocket",
            hub_id="yonigozlan/EdgeTAM-hf",
        ),
        *_listed(
            {"sam-vit-base": (93.7, ""), "sam-vit-large": (312.3, ""), "sam-vit-huge": (641.1, "")},
            "sam",
            "facebook",
            "the first Segment Anything; original files sam_vit_*.pth work as well",
        ),
        *_listed(
            {"medsam-vit-base": (93.7, "")},
            "sam",
            "wanglab",
            "SAM fine-tuned on medical images; prompt it with boxes",
        ),
        *_listed(
            {"sam-hq-vit-base": (94.8, ""), "sam-hq-vit-large": (313.7, ""), "sam-hq-vit-huge": (642.7, "")},
            "sam",
            "syscv-community",
            "HQ-SAM: SAM with finer edges and thin parts; original files sam_hq_vit_*.pth work as well",
        ),
        Entry(
            name="mobile-sam",
            family="mobile",
            capabilities=MOBILE,
            parameters=10.1,
            megabytes=41,
            licence=APACHE,
            note="SAM with a small encoder (TinyViT)",
            hub_id="dhkim2810/MobileSAM",
            file="mobile_sam.pt",
        ),
        Entry(
            name="sam3",
            family="sam3",
            capabilities=SAM3,
            parameters=859.9,
            megabytes=3440,
            licence=SAM_LICENCE,
            note="text, exemplars, points and boxes; wants a GPU; the original file sam3.pt works as well",
            hub_id="facebook/sam3",
            gated=True,
        ),
        Entry(
            name="sam3-lite-text",
            family="sam3",
            capabilities=SAM3_DETECTOR,
            parameters=529.2,
            megabytes=2117,
            licence=f"{SAM_LICENCE} (made from SAM 3)",
            note="SAM 3 for text and exemplars alone, with a small text encoder",
            hub_id="yonigozlan/sam3-litetext-s0",
        ),
    )
}
