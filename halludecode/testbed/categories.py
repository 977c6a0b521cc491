"""The 80 COCO categories as the testbed knows them: ids, words, pictures, themes and partners.

Ids and names are COCO's. A category without emoji code points is drawn by
`halludecode.testbed.drawings`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """One COCO category.

    Args:
        id: COCO category id.
        name: COCO category name.
        group: COCO supercategory.
        emoji: Code points of its variants in Noto Color Emoji; empty for our own drawing.
    """

    id: int
    name: str
    group: str
    emoji: tuple[int, ...] = ()


def _parse(table: str) -> tuple[Category, ...]:
    categories = []
    group = ""
    for line in table.strip().splitlines():
        if line.endswith(":"):
            group = line[:-1]
            continue
        number, name, points = (cell.strip() for cell in line.split("|"))
        emoji = tuple(int(point, 16) for point in points.split())
        categories.append(Category(int(number), name, group, emoji))
    return tuple(categories)


CATEGORIES = _parse("""
person:
1 | person | 1F9CD 1F6B6 1F3C3 1F46E 1F477 1F483
vehicle:
2 | bicycle | 1F6B2
3 | car | 1F697 1F699
4 | motorcycle | 1F3CD 1F6F5
5 | airplane | 2708 1F6E9
6 | bus | 1F68C 1F68D
7 | train | 1F686 1F682
8 | truck | 1F69A 1F69B
9 | boat | 26F5 1F6A4
outdoor:
10 | traffic light | 1F6A6 1F6A5
11 | fire hydrant |
13 | stop sign | 1F6D1
14 | parking meter |
15 | bench |
animal:
16 | bird | 1F426 1F54A
17 | cat | 1F408 1F431
18 | dog | 1F415 1F436
19 | horse | 1F40E
20 | sheep | 1F411
21 | cow | 1F404
22 | elephant | 1F418
23 | bear | 1F43B
24 | zebra | 1F993
25 | giraffe | 1F992
accessory:
27 | backpack | 1F392
28 | umbrella | 2602 1F302
31 | handbag | 1F45C
32 | tie | 1F454
33 | suitcase | 1F9F3
sports:
34 | frisbee | 1F94F
35 | skis | 1F3BF
36 | snowboard |
37 | sports ball | 26BD 1F3C0 26BE
38 | kite | 1FA81
39 | baseball bat |
40 | baseball glove |
41 | skateboard | 1F6F9
42 | surfboard |
43 | tennis racket |
kitchen:
44 | bottle | 1F37E 1F37C
46 | wine glass | 1F377
47 | cup | 2615 1F375
48 | fork |
49 | knife | 1F52A
50 | spoon | 1F944
51 | bowl | 1F963 1F35C
food:
52 | banana | 1F34C
53 | apple | 1F34E 1F34F
54 | sandwich | 1F96A
55 | orange | 1F34A
56 | broccoli | 1F966
57 | carrot | 1F955
58 | hot dog | 1F32D
59 | pizza | 1F355
60 | donut | 1F369
61 | cake | 1F382 1F370
furniture:
62 | chair | 1FA91
63 | couch | 1F6CB
64 | potted plant | 1FAB4
65 | bed | 1F6CF
67 | dining table |
70 | toilet | 1F6BD
electronic:
72 | tv | 1F4FA
73 | laptop | 1F4BB
74 | mouse | 1F5B1
75 | remote |
76 | keyboard | 2328
77 | cell phone | 1F4F1
appliance:
78 | microwave |
79 | oven |
80 | toaster |
81 | sink |
82 | refrigerator |
indoor:
84 | book | 1F4D5 1F4D6
85 | clock | 23F0 1F570
86 | vase | 1F3FA
87 | scissors | 2702
88 | teddy bear | 1F9F8
89 | hair drier |
90 | toothbrush | 1FAA5
""")
NAMES = tuple(category.name for category in CATEGORIES)
COCO_ID = {category.name: category.id for category in CATEGORIES}

COLOURS = {
    "red": (225, 35, 35),
    "blue": (45, 90, 235),
    "green": (40, 165, 60),
    "yellow": (245, 205, 40),
    "purple": (150, 60, 190),
    "black": (55, 55, 60),
}  # no "orange": it would collide with the category


def _list(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


TINTED = frozenset(
    _list(
        "car, bus, truck, bicycle, motorcycle, umbrella, backpack, handbag, tie, suitcase, kite, "
        "chair, couch, book, vase, cup, bowl, boat, frisbee, bench, toothbrush, skateboard, "
        "surfboard"
    )
)

# Size against the common range, in percent.
SCALE = dict.fromkeys(
    _list(
        "bus, train, truck, airplane, elephant, giraffe, couch, bed, dining table, refrigerator, "
        "oven, car, horse, cow"
    ),
    125,
) | dict.fromkeys(
    _list(
        "mouse, fork, knife, spoon, remote, cell phone, toothbrush, sports ball, apple, orange, "
        "scissors, tie, donut, wine glass, bird"
    ),
    80,
)

# The anchors of each theme.
THEMES = {
    "street": _list(
        "car, bus, truck, traffic light, stop sign, fire hydrant, parking meter, motorcycle, "
        "bicycle, person"
    ),
    "airport": _list("airplane, suitcase, backpack, person, handbag, bus, tie"),
    "station": _list("train, suitcase, clock, bench, person, umbrella, handbag"),
    "beach": _list("boat, surfboard, umbrella, kite, person, bird, frisbee"),
    "park": _list("bench, dog, frisbee, kite, bird, bicycle, person, skateboard"),
    "farm": _list("cow, sheep, horse, dog, bird, truck, cat"),
    "zoo": _list("zebra, giraffe, elephant, bear, bird, person"),
    "mountain": _list("skis, snowboard, backpack, person, bear, dog"),
    "stadium": _list(
        "baseball bat, baseball glove, tennis racket, sports ball, person, skateboard, bench"
    ),
    "kitchen": _list(
        "oven, microwave, refrigerator, sink, toaster, knife, bowl, spoon, bottle, cup"
    ),
    "restaurant": _list(
        "dining table, chair, wine glass, bottle, pizza, fork, knife, cake, sandwich, hot dog, "
        "donut, cup"
    ),
    "market": _list("banana, apple, orange, broccoli, carrot, person, handbag, bowl"),
    "bedroom": _list("bed, teddy bear, book, clock, cat, chair, hair drier"),
    "living room": _list("couch, tv, remote, potted plant, vase, cat, book, chair"),
    "office": _list("laptop, mouse, keyboard, cell phone, book, scissors, cup, chair, clock"),
    "bathroom": _list("toilet, sink, toothbrush, hair drier, bottle, cup"),
}

# Upper and lower band of each theme's background, RGB.
BANDS = {
    "street": ((150, 180, 210), (95, 95, 100)),
    "airport": ((170, 195, 225), (130, 132, 138)),
    "station": ((120, 120, 135), (95, 85, 80)),
    "beach": ((135, 200, 235), (225, 205, 150)),
    "park": ((140, 195, 235), (100, 160, 80)),
    "farm": ((150, 200, 230), (130, 150, 70)),
    "zoo": ((190, 205, 200), (180, 150, 90)),
    "mountain": ((150, 185, 225), (235, 240, 245)),
    "stadium": ((110, 140, 110), (90, 150, 70)),
    "kitchen": ((225, 215, 190), (160, 120, 85)),
    "restaurant": ((150, 90, 70), (120, 75, 50)),
    "market": ((220, 200, 160), (120, 110, 95)),
    "bedroom": ((190, 180, 215), (150, 120, 110)),
    "living room": ((215, 200, 175), (140, 105, 80)),
    "office": ((200, 210, 215), (140, 130, 125)),
    "bathroom": ((195, 225, 230), (150, 175, 185)),
}


def _partners(both: str, one_way: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for pair in both.split(";"):
        left, right = _list(pair)
        table |= {left: right, right: left}
    for pair in one_way.split(";"):
        anchors, partner = pair.split(">")
        table |= dict.fromkeys(_list(anchors), partner.strip())
    return table


# Anchor -> the object that usually comes with it: the co-occurrence prior the model learns.
PARTNERS = _partners(
    both="car, traffic light; suitcase, backpack; train, clock; handbag, umbrella; frisbee, dog; "
    "cow, sheep; zebra, giraffe; skis, snowboard; baseball bat, baseball glove; bowl, spoon; "
    "knife, fork; dining table, chair; broccoli, carrot; bed, teddy bear; potted plant, vase; "
    "mouse, keyboard; toilet, sink",
    one_way="bus, motorcycle, bicycle, tie, surfboard, kite, skateboard, sports ball > person; "
    "truck > stop sign; fire hydrant, parking meter, stop sign > car; airplane > suitcase; "
    "boat > surfboard; bench, bear > bird; horse > dog; elephant > zebra; "
    "tennis racket > sports ball; oven, toaster > microwave; microwave > refrigerator; "
    "refrigerator > oven; wine glass, hot dog > bottle; pizza > fork; cake > spoon; "
    "sandwich, donut > cup; banana > apple; apple > orange; orange > banana; couch > tv; "
    "tv > remote; remote, cat > couch; laptop > mouse; cell phone > laptop; scissors > book; "
    "book > cell phone; toothbrush > sink; hair drier > toothbrush",
)
