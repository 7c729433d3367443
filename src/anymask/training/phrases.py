"""Noun phrases for teaching the pocket model's text tower: what people write when they ask for a mask.

Built offline from word lists that are already on the disk: the ImageNet-21k lemmas inside timm, WordNet's nouns for
physical things (optional; Debian's `wordnet-base`, Princeton's licence), the whole words of the tokenizer's
vocabulary, and the lists below. Everyday names get many templates (colour, material, size, count, position, relation),
rare names few.
"""

import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip
VOC_NAMES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
_EVERYDAY = """
man; woman; child; boy; girl; baby; player; rider; worker; driver; face; head; hair; eye; nose; mouth; ear; hand;
finger; arm; leg; foot; shirt; t-shirt; jacket; coat; dress; skirt; trousers; jeans; shorts; shoe; sneaker; boot;
sandal; sock; hat; cap; helmet; glasses; sunglasses; glove; scarf; belt; watch; ring; necklace; earring; bag; purse;
wallet; key; coin; house; building; tower; bridge; road; street; sidewalk; wall; fence; gate; door; window; roof;
chimney; stairs; floor; ceiling; room; column; sign; flag; pole; street lamp; lamp; light bulb; candle; curtain;
carpet; rug; pillow; cushion; blanket; towel; mattress; desk; table; stool; armchair; sofa; shelf; bookcase; cupboard;
cabinet; drawer; wardrobe; mirror; picture frame; painting; poster; photograph; basket; box; cardboard box; bin;
trash can; bucket; barrel; crate; jar; can; mug; glass; plate; dish; tray; pan; pot; kettle; teapot; lid;
cutting board; napkin; tablecloth; stove; dishwasher; washing machine; fan; heater; air conditioner; vacuum cleaner;
iron; sewing machine; broom; mop; sponge; soap; toothpaste; comb; brush; razor; lipstick; perfume; faucet; shower;
bathtub; camera; tripod; telephone; smartphone; tablet; monitor; screen; computer; computer mouse; printer; speaker;
headphones; microphone; radio; television; remote control; cable; plug; socket; battery; switch; button; robot; drone;
tool; hammer; nail; screw; screwdriver; wrench; pliers; saw; drill; axe; shovel; rake; ladder; rope; chain; wheel;
tire; gear; engine; pipe; hose; wheelbarrow; bolt; nut; spring; wire; brick; stone; rock; pebble; sand; soil; grass;
lawn; tree; trunk; branch; leaf; bush; flower; rose; tulip; sunflower; daisy; lily; orchid; cactus; moss; fern;
mushroom; seed; fruit; vegetable; pear; peach; plum; cherry; grape; strawberry; raspberry; blueberry; lemon; lime;
pineapple; mango; melon; watermelon; coconut; kiwi; tomato; potato; onion; garlic; cucumber; pepper; corn; pumpkin;
lettuce; cabbage; spinach; bean; pea; rice; bread; bun; bagel; croissant; pasta; noodles; soup; salad; steak; sausage;
bacon; ham; chicken; fish; egg; cheese; butter; milk; yogurt; ice cream; cookie; pie; pancake; waffle; chocolate;
candy; coffee; tea; juice; beer; wine; water; ice; snow; cloud; sky; sun; moon; star; mountain; hill; river; lake;
sea; ocean; beach; wave; waterfall; island; forest; field; garden; path; puddle; fire; smoke; shadow; reflection;
puppy; kitten; pony; foal; calf; lamb; goat; pig; donkey; camel; deer; moose; fox; wolf; lion; tiger; leopard;
cheetah; monkey; gorilla; panda; koala; kangaroo; rabbit; hare; squirrel; mouse; rat; hamster; hedgehog; bat; otter;
seal; whale; dolphin; shark; goldfish; salmon; octopus; jellyfish; crab; lobster; shrimp; snail; shell; starfish;
coral; frog; toad; snake; lizard; turtle; crocodile; dinosaur; hen; rooster; duck; goose; swan; turkey; pigeon; crow;
seagull; parrot; owl; eagle; penguin; flamingo; peacock; ostrich; butterfly; moth; bee; wasp; fly; ant; beetle;
ladybug; spider; grasshopper; dragonfly; worm; nest; feather; wing; tail; horn; paw; beak; van; pickup truck; taxi;
ambulance; police car; fire truck; tractor; excavator; crane; bulldozer; scooter; moped; motorbike; tricycle;
stroller; wheelchair; cart; wagon; carriage; tram; subway; locomotive; aeroplane; helicopter; hot air balloon;
balloon; rocket; ship; sailboat; canoe; kayak; ferry; anchor; license plate; headlight; windshield; seat;
steering wheel; saddle; traffic cone; barrier; crosswalk; mailbox; fountain; statue; tent; umbrella stand; swing;
slide; ball; soccer ball; basketball; baseball; tennis ball; golf ball; volleyball; football; goal; net; hockey stick;
racket; dumbbell; toy; doll; puzzle; dice; chess piece; playing card; guitar; piano; violin; drum; trumpet; flute;
saxophone; pen; pencil; marker; eraser; ruler; notebook; paper; envelope; newspaper; magazine; stapler; tape; glue;
calendar; map; globe; whiteboard; pill; syringe; bandage; thermometer; stethoscope; mask; gift; ribbon; crown; sword;
shield; gun; cell; nucleus; bacteria; tooth; bone; skull; heart; lung; liver; kidney; brain; tumor; lesion; polyp;
blood vessel; crack; hole; scratch; stain; rust; logo; text; letter; number; barcode; solar panel; wind turbine;
swimming pool; tennis court; parking lot; ship container; storage tank
"""
EVERYDAY_NAMES: tuple[str, ...] = tuple(" ".join(name.split()) for name in _EVERYDAY.split(";"))

_COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "golden",
    "silver", "beige", "turquoise", "colourful",
)  # fmt: skip
_MATERIALS = (
    "wooden", "metal", "plastic", "glass", "paper", "leather", "stone", "concrete", "ceramic", "rubber", "cotton",
    "steel",
)  # fmt: skip
_SIZES = (
    "big", "small", "large", "tiny", "huge", "tall", "short", "long", "narrow", "wide", "round", "square", "thin",
    "thick",
)  # fmt: skip
_LOOKS = (
    "striped", "spotted", "checkered", "shiny", "transparent", "dark", "bright", "old", "new", "broken", "dirty",
    "clean", "wet", "open", "closed", "empty", "full",
)  # fmt: skip
_STATES = (
    "standing", "sitting", "lying", "sleeping", "running", "flying", "walking", "eating", "moving", "parked",
    "hanging",
)  # fmt: skip
_COUNTS = (
    "two", "three", "four", "five", "six", "several", "many", "some", "all",
)  # fmt: skip
_POSITIONS = (
    "on the left", "on the right", "in the middle", "in the background", "in the foreground", "at the top",
    "at the bottom", "in the corner", "on the far left", "closest to the camera", "on the table", "on the ground",
    "in the water", "in front",
)  # fmt: skip
_RELATIONS = (
    "of a", "of the", "with a", "next to the", "behind the", "in front of the", "on a", "under the", "near a",
    "inside a", "above the",
)  # fmt: skip
_PLAIN = (
    "{a} {x}", "the {x}", "{xs}", "a photo of {a} {x}", "a picture of the {x}", "an image of {a} {x}", "every {x}",
    "all the {xs}", "a close-up of {a} {x}", "a group of {xs}", "a pair of {xs}", "part of {a} {x}",
    "the other {x}", "this {x}", "{x} only",
)  # fmt: skip
_IRREGULAR_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "fish": "fish", "deer": "deer", "leaf": "leaves",
    "knife": "knives", "wolf": "wolves", "shelf": "shelves", "calf": "calves", "loaf": "loaves",
}  # fmt: skip
# Of WordNet's lexicographer files: animal, artifact, body, food, object, person, plant, substance.
_PHYSICAL_WORDNET_FILES = {"05", "06", "08", "13", "17", "18", "20", "27"}


@dataclass(frozen=True)
class Phrases:
    """Phrases in a fixed order and which of them belong to nouns that are kept out of training."""

    texts: tuple[str, ...]
    held_out: Bool[np.ndarray, " n"]


def build_phrases(
    vocabulary: Path,
    wordnet: Path | None = None,
    held_out_fraction: float = 0.02,
    limit: int | None = None,
    seed: int = 0,
) -> Phrases:
    """Every noun alone and in templates, without duplicates; all phrases of a held-out noun are held out together.

    A compound such as "striped bass" can still arise as a template of "bass". The names of COCO, VOC and the everyday
    list are never held out: they are the gallery and the partners in "X of a Y".
    `limit` keeps a random subset of that many phrases.
    """
    rng = random.Random(seed)
    everyday = dict.fromkeys((*COCO_NAMES, *VOC_NAMES, *EVERYDAY_NAMES))
    templates_per_noun: dict[str, int] = dict.fromkeys(everyday, 130)
    for nouns, count in ((imagenet_nouns(), 2), (vocabulary_words(vocabulary), 1), (wordnet_nouns(wordnet), 0)):
        for noun in nouns:
            templates_per_noun.setdefault(noun, count)

    held_out_of: dict[str, bool] = {}
    for noun, count in templates_per_noun.items():
        held_out = noun not in everyday and rng.random() < held_out_fraction
        held_out_of.setdefault(noun, held_out)
        for _ in range(count):
            held_out_of.setdefault(_in_template(noun, list(everyday), rng), held_out)
    texts = list(held_out_of)
    if limit is not None and limit < len(texts):
        texts = rng.sample(texts, limit)
    return Phrases(tuple(texts), np.array([held_out_of[text] for text in texts], dtype=bool))


def imagenet_nouns() -> list[str]:
    """The lemmas of the ImageNet-21k synsets with their synonyms, lower case, from timm's own data files."""
    table = resources.files("timm").joinpath("data/_info/imagenet_synset_to_lemma.txt").read_text()
    lemmas = (line.split("\t", 1)[1] for line in table.splitlines() if "\t" in line)
    return [lemma.strip().lower() for row in lemmas for lemma in row.split(",") if lemma.strip()]


def vocabulary_words(vocabulary: Path) -> list[str]:
    """The whole alphabetic words of a WordPiece vocabulary, three letters or more."""
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return [word for word in words if len(word) > 2 and word.isascii() and word.isalpha()]


def wordnet_nouns(data_noun: Path | None) -> list[str]:
    """The lemmas of physical things in WordNet's `data.noun` file, without proper and Latin names; none without a file.

    A line is `offset lex_filenum ss_type w_cnt word lex_id [word lex_id ...] ...`, w_cnt in hexadecimal (wndb(5)).
    """
    if data_noun is None:
        return []
    nouns = []
    for line in data_noun.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.split(" ")
        if fields[1] in _PHYSICAL_WORDNET_FILES:
            nouns += [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
    return [noun for noun in nouns if noun == noun.lower()]


def _in_template(noun: str, partners: list[str], rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return _fill(rng.choice(_PLAIN), noun)
    if kind < 0.35:
        return f"{rng.choice(_COUNTS)} {plural(noun)}"
    phrase = noun
    if kind < 0.8:
        phrase = f"{rng.choice(rng.choice([_COLOURS, _COLOURS, _MATERIALS, _SIZES, _LOOKS, _STATES]))} {phrase}"
    if kind < 0.5:
        phrase = f"{rng.choice((*_SIZES, *_LOOKS))} {phrase}"
    if kind > 0.7:
        place = rng.choice([rng.choice(_POSITIONS), _related_to(rng.choice(partners), rng)])
        phrase = f"{phrase} {place}"
    return _fill(rng.choice(["{x}", "{x}", "the {x}", "{a} {x}"]), phrase)


def _related_to(partner: str, rng: random.Random) -> str:
    relation = rng.choice(_RELATIONS)
    return f"{relation}n {partner}" if relation.endswith(" a") and partner[0] in "aeiou" else f"{relation} {partner}"


def _fill(template: str, noun: str) -> str:
    text = template.format(a="{a}", x=noun, xs=plural(noun))
    return text.replace("{a}", "an" if text.partition("{a} ")[2][:1] in "aeiou" else "a")


def plural(noun: str) -> str:
    """The regular English plural, with the few irregular ones that people ask masks for."""
    head, _, last = noun.rpartition(" ")
    if last in _IRREGULAR_PLURALS:
        last = _IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last = last if last in {"scissors", "skis", "glasses", "jeans", "shorts", "trousers"} else last + "es"
    elif last.endswith("y") and last[-2:-1] not in set("aeiou"):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()
