"""What each family understands, apart from its code: to list models must not load the libraries behind them."""

from dataclasses import replace

from anymask.models.protocol import Capabilities, Model, Thresholds
from anymask.types import Prompt

_POINTS = {
    "points": "of a lone click the surest of three masks (whole, part, subpart); of several clicks the single mask",
    "negative points": "lower the mask around them; alone, without a positive point, box or mask, they say little",
    "boxes": "one an object, best a little larger than it; clicks and a mask may join it; the mask may leave it",
    "negative boxes": "not understood: use negative points",
    "masks": "logits of an earlier result are refined, best with a click; a bool mask is a rough hint",
}
_NO_TEXT = {
    "text": "not understood: name things with pocket or sam3",
    "negative text": "not understood",
    "exemplars": "not understood",
}
_NAMES = {
    "negative boxes": "negative exemplars beside a text or exemplar: what looks like them is left out",
    "text": "short noun phrases, all instances; a long text is cut after 30 word pieces",
    "negative text": "what a negative name claims more surely is taken away",
    "exemplars": "boxes in this image or another: everything that looks like them; alone or beside one text; a mask"
    " counts as its box",
}

SAM = Capabilities(notes={**_POINTS, **_NO_TEXT})
MOBILE = SAM
SAM2 = Capabilities(
    thresholds=Thresholds(predicted_iou=0.8),
    notes={
        **_POINTS,
        "single mask": "where it is not stable, the surest of the candidates takes its place",
        **_NO_TEXT,
    },
)
SAM3 = Capabilities(
    text=True,
    exemplars=True,
    concepts=True,
    thresholds=Thresholds(instance=0.0, product=0.5, predicted_iou=0.8),
    notes={**_POINTS, **_NAMES},
)
_NO_TRACKER = dict.fromkeys(
    ("points", "negative points", "boxes", "masks"), "not understood: these weights have no tracker"
)
SAM3_DETECTOR = replace(SAM3, points=False, boxes=False, masks=False, notes={**_NO_TRACKER, **_NAMES})


def knows_no_text(name: str) -> ValueError:
    """The refusal of a text by a model that knows none."""
    return ValueError(f"{name} knows no text: use pocket or sam3, or prompt with points, boxes or a mask")


def presence_threshold(model: Model, prompt: Prompt) -> float:
    """From which presence on the name counts: learned for it, or that of the model."""
    return float(prompt.thresholds.get(model.name, model.capabilities.thresholds.presence))
