"""Other words for the names of the training set, so that the pocket model answers to more than the labels' own words.

Synonyms mean the same things; a group means all of its members at once, and so is only asked in sources that label
nearly all of it. Chosen by hand from the names of `promptable/train`; a name that is missing here is asked as itself.
"""

from collections.abc import Collection

SYNONYMS: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "aircraft", "jet"),
    "backpack": ("rucksack", "school bag"),
    "balcony fence": ("balcony railing", "balustrade"),
    "banana": ("bananas",),
    "baseball glove": ("catcher's mitt",),
    "bench": ("park bench",),
    "bicycle": ("bike", "cycle"),
    "blazer": ("suit jacket",),
    "boat": ("ship", "vessel"),
    "book": ("books",),
    "boot": ("boots",),
    "bottle": ("flask", "glass bottle"),
    "bracelet": ("bangle",),
    "bus": ("coach", "public bus"),
    "car": ("automobile", "motor car"),
    "cat": ("kitty", "feline", "house cat"),
    "cell phone": ("mobile phone", "smartphone", "phone"),
    "chair": ("seat",),
    "clock": ("wall clock",),
    "coat": ("overcoat",),
    "couch": ("sofa", "settee"),
    "cow": ("cattle",),
    "cup": ("mug",),
    "deer": ("stag",),
    "dining table": ("table",),
    "dog": ("puppy", "hound", "canine"),
    "donut": ("doughnut",),
    "dress": ("gown",),
    "facade": ("building front", "building", "house front"),
    "fence": ("railing",),
    "fire hydrant": ("hydrant",),
    "glasses": ("spectacles", "eyeglasses"),
    "hair": ("hairdo", "head of hair"),
    "hair drier": ("hair dryer", "blow dryer"),
    "handbag": ("ladies' bag",),
    "horse": ("pony", "stallion", "mare"),
    "jeans": ("denim trousers",),
    "keyboard": ("computer keyboard",),
    "laptop": ("notebook computer", "portable computer"),
    "microwave": ("microwave oven",),
    "monkey": ("primate",),
    "motorcycle": ("motorbike",),
    "mouse": ("computer mouse",),
    "nucleus": ("cell nucleus", "nuclei", "cell"),
    "orange": ("orange fruit",),
    "oven": ("stove", "cooker"),
    "pants": ("trousers", "slacks"),
    "person": ("human", "people", "human being"),
    "pet": ("pet animal", "cat or dog"),
    "potted plant": ("house plant", "plant in a pot"),
    "purse": ("pocketbook",),
    "refrigerator": ("fridge",),
    "remote": ("remote control",),
    "scissors": ("pair of scissors", "shears"),
    "sheep": ("lamb", "ewe"),
    "shoe": ("shoes",),
    "sink": ("washbasin", "basin"),
    "skin": ("bare skin",),
    "sneaker": ("trainer", "running shoe"),
    "sofa": ("couch", "settee"),
    "sports ball": ("ball",),
    "street": ("road", "roadway"),
    "sunglasses": ("shades", "dark glasses"),
    "sweater": ("pullover", "jersey"),
    "t-shirt": ("tee shirt",),
    "teddy bear": ("stuffed animal", "plush bear"),
    "toilet": ("lavatory",),
    "traffic light": ("stoplight", "traffic signal"),
    "train": ("railway train", "locomotive"),
    "truck": ("lorry",),
    "turtle": ("tortoise",),
    "tv": ("television", "monitor", "screen"),
    "umbrella": ("parasol",),
    "vegetation": ("greenery", "trees and bushes"),
    "watch": ("wristwatch",),
    "window": ("window pane", "windows"),
    "wine glass": ("goblet",),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        *("bear", "bird", "cat", "cow", "deer", "dog", "elephant", "giraffe"),
        *("horse", "monkey", "otter", "pet", "sheep", "tiger", "turtle", "zebra"),
    ),
    "vehicle": ("airplane", "bicycle", "boat", "bus", "car", "motorcycle", "train", "truck"),
    "furniture": ("bed", "bench", "chair", "couch", "dining table", "sofa"),
    "food": ("apple", "banana", "broccoli", "cake", "carrot", "donut", "hot dog", "orange", "pizza", "sandwich"),
    "footwear": ("boot", "flat shoe", "heel", "loafer", "pump shoe", "sandal", "shoe", "sneaker", "wedge shoe"),
}

# Sources that label nearly all of a group, so that its absence can be told.
GROUP_SOURCES: dict[str, tuple[str, ...]] = {
    "animal": ("coco_full", "voc2012aug_animals", "voc2007seg"),
    "vehicle": ("coco_full",),
    "furniture": ("coco_full",),
    "food": ("coco_full",),
    "footwear": ("clothing_ccp",),
}


def words(names: Collection[str]) -> list[str]:
    """Everything that may be asked where these names are labelled: names, synonyms, groups with a member."""
    other = [word for name in names for word in SYNONYMS.get(name, ())]
    groups = [group for group, members in GROUPS.items() if any(name in members for name in names)]
    return sorted({*names, *other, *groups})


def groups_of(name: str, source: str) -> list[str]:
    """The groups that a name belongs to and that may be asked in pictures of `source`."""
    return [group for group, members in GROUPS.items() if name in members and source in GROUP_SOURCES[group]]
