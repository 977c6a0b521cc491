"""HALC's fields of view: an object closer and from further away, and what to make of them.

Chen et al., "HALC: Object Hallucination Reduction via Adaptive Focal-Contrast Decoding", ICML 2024,
arXiv 2403.00425. A search is a generator: it yields passes by name, is sent what they kept, and
ends when every word has been looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.prompt import Picture, Prompt
from halludecode.views.detection import find, similarities

if TYPE_CHECKING:
    from torch import Tensor

# Words of COCO's 80 categories that stand alone, and people, who are rarely called persons.
_COCO = (
    "person man woman boy girl bicycle car motorcycle airplane plane bus train truck boat bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie "
    "suitcase frisbee ski snowboard kite skateboard surfboard racket bottle glass cup fork knife "
    "spoon bowl banana apple sandwich orange broccoli carrot pizza donut cake chair couch sofa "
    "plant bed table toilet tv laptop mouse remote keyboard phone microwave oven toaster sink "
    "refrigerator book clock vase scissors toothbrush"
)
OBJECTS = frozenset(_COCO.split())
EVERY = "all"  # an object that every word is
MIDDLE = (0.2, 0.2, 0.8, 0.8)  # where nothing was detected
MOST_BOXES = 3
SIDE = 32  # least pixels of a crop's side; some models make too few tokens of less
WORD = 4  # tokens of a candidate that are written to be judged
BEGINS = "▁Ġ "  # how vocabularies mark that a word begins

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture
Words = Generator[Mapping[str, ActivationRequest], Sequence[Activations], None]


@dataclass(frozen=True)
class Looking:
    """How words are looked at, see `strategies.halc`; ``objects`` () is `OBJECTS`."""

    objects: tuple[str, ...]
    detector: str
    threshold: float
    matcher: str
    fields: int
    growth: float
    pairs: int
    weight: float
    tokens: int


def grown(box: Box, share: float) -> Box:
    """A box whose sides are 1 + share as long about its middle, cut to the picture."""
    left, top, right, bottom = box
    x, y = (right - left) * share / 2, (bottom - top) * share / 2
    return max(0, left - x), max(0, top - y), min(1, right + x), min(1, bottom + y)


def fields(box: Box, growth: float, count: int) -> list[Box]:
    """The box smaller by ``growth``, as it is, and larger again and again; ``count`` of them."""
    made = [grown(box, -growth), box]  # a growth above 0.8 is taken for 0.8 by the bounds
    while len(made) < count:
        made.append(grown(made[-1], growth))
    return made[:count]


def box_of(picture: Picture, word: str, looking: Looking) -> Box | None:
    """The smallest place where a detector finds a word; None where it finds too many."""
    told = {"model": looking.detector, "threshold": looking.threshold, "labels": (word,)}
    (things,) = find([picture], **told)
    if len(things) > MOST_BOXES:
        return None
    wide, high = picture.image.size
    boxes = [
        (left / wide, top / high, right / wide, bottom / high)
        for left, top, right, bottom in (thing.box for thing in things)
    ]
    return min(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=MIDDLE)


def cropped(picture: Picture, box: Box) -> Picture:
    """A part of a picture, a pixel or more of it, enlarged by a whole number if it is tiny."""
    wide, high = picture.image.size
    left, top = min(int(box[0] * wide), wide - 1), min(int(box[1] * high), high - 1)
    right, bottom = max(round(box[2] * wide), left + 1), max(round(box[3] * high), top + 1)
    part = picture.image.crop((left, top, right, bottom))
    times = -(-SIDE // min(part.size))
    return Picture.of(part.resize((part.width * times, part.height * times)))


def distance(p: Tensor, q: Tensor) -> float:
    """(KL(m || p) + KL(m || q)) / 2 of two logit vectors [V], m the mean of the distributions.

    Jensen and Shannon's with its arguments exchanged, as the released code has it.
    """
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    m = (log_p.exp() + log_q.exp()) / 2
    return float((m * (m.log() - (log_p + log_q) / 2)).nan_to_num(0).sum())


def contrasts(logits: Sequence[Tensor] | Tensor, pairs: int, weight: float) -> Tensor:
    """Scores [2 pairs, V] of the fields that are furthest apart, each pair both ways.

    Args:
        logits: Of the next token in each field, [V].
        pairs: How many; the first of equals.
        weight: Share of the other field that is subtracted.
    """
    import torch

    apart = {(i, j): distance(logits[i], logits[j]) for i, j in combinations(range(len(logits)), 2)}
    chosen = sorted(apart, key=lambda pair: -apart[pair])[:pairs]
    ways = [(a, b) for i, j in chosen for a, b in ((i, j), (j, i))]
    return torch.stack([logits[b] - weight * logits[a] for a, b in ways])


def words_of(pieces: Sequence[str]) -> list[tuple[int, int, str]]:
    """Words of an answer: their first token, the one after their last, and their letters."""
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece[:1] in BEGINS]
    ends = [*starts[1:], len(pieces)]
    return [(i, j, re.sub(r"[^\w-]", "", spelt(pieces[i:j])).lower())
            for i, j in zip(starts, ends, strict=True)]  # fmt: skip


def spelt(pieces: Sequence[str]) -> str:
    """The text of tokens, without those that stand for no text."""
    kept = [piece for piece in pieces if not re.fullmatch(r"<.*>", piece)]
    return re.sub(f"[{BEGINS}]", " ", "".join(kept)).strip()


def named(word: str, objects: Collection[str]) -> str:
    """The object that a word is, in the singular as the released code makes it; "" for none."""
    single = word.removesuffix("s")
    return next((w for w in (word, single) if w in objects), single if EVERY in objects else "")


@lru_cache(maxsize=1024)
def _fits(picture: Picture, texts: tuple[str, ...], model: str) -> tuple[float, ...]:
    return tuple(similarities([picture], texts, model=model)[0].tolist())


def fitting(pictures: Sequence[Picture], texts: Sequence[str], model: str) -> int:
    """Which of several texts a model of pictures and words finds closest to the pictures."""
    fits = [_fits(picture, tuple(texts), model) for picture in pictures]
    means = [sum(own) / len(fits) for own in zip(*fits, strict=True)]
    return means.index(max(means))


def plain(prompt: Prompt, ids: tuple[int, ...], tokens: int) -> dict[str, ActivationRequest]:
    """The pass that writes the rest of an answer; its name tells what it begins with."""
    name = " ".join(["plain", *map(str, ids)])
    return {name: ActivationRequest(prompt, write=max(tokens - len(ids), 1), answered=ids)}


def written(passes: Mapping[str, Activations], most: int) -> Tensor:
    """int64 [most]: the answer of the last of a search's passes named "plain ..", then -1."""
    import torch

    names = [name for name in passes if name.split(" ")[0] == "plain"]
    ids = [int(i) for n in names[-1:] for i in (*n.split(" ")[1:], *passes[n].token_ids)]
    return torch.tensor((ids + [-1] * most)[:most])


def only(main: Tensor, answer: Tensor, t: Tensor) -> Tensor:
    """Bool [B, V]: the token of an answer at its place, where it may be written; else none.

    Args:
        main: float [B, V], -inf where a token is banned.
        answer: int64 [B, n] of ids, -1 for none.
        t: int64 [B, 1], the place, from 1.
    """
    import torch

    at = t.to(answer.device) - 1
    inside = at < answer.shape[1]
    ids = answer.gather(1, at.clamp(max=answer.shape[1] - 1)).where(inside, -1).to(main.device)
    return (torch.arange(main.shape[-1], device=main.device) == ids) & main.isfinite()


def looked_at(prompt: Prompt, looking: Looking) -> Words:
    """Write an answer, look at each object it names, and write on from where another fits better.

    What it asks for last under a name "plain .." writes the answer, see `written`.
    """
    (kept,) = yield plain(prompt, (), looking.tokens)
    ids, at = kept.token_ids, 0
    while word := next((w for w in words_of(kept.pieces) if w[0] >= at), None):
        first, at, letters = word
        name = named(letters, looking.objects or OBJECTS)
        found = [box_of(picture, name, looking) for picture in prompt.pictures] if name else []
        boxes = [box for box in found if box is not None]
        if not name or len(boxes) < len(found):
            continue
        begun = ids[:first]
        seen = yield views(prompt, boxes, begun, looking)
        logits = [each.logits[0] for each in seen if each.logits is not None]
        scores = contrasts(logits, looking.pairs, looking.weight)
        tokens: list[int] = list(dict.fromkeys(scores.argmax(-1).tolist()))
        if tokens == [ids[first]]:
            continue
        others = yield {
            f"word {(*begun, token)}": ActivationRequest(
                prompt, write=WORD, answered=(*begun, token)
            )
            for token in tokens
        }
        texts = [_until(each.pieces, first) for each in others]
        token = tokens[fitting(prompt.pictures, texts, looking.matcher)]
        if token != ids[first]:
            (kept,) = yield plain(prompt, (*begun, token), looking.tokens)
            ids, at = (*begun, token, *kept.token_ids), first + 1


def views(
    prompt: Prompt, boxes: Sequence[Box], begun: tuple[int, ...], looking: Looking
) -> dict[str, ActivationRequest]:
    """What comes next after the tokens ``begun`` with each field round the boxes as the picture."""
    each = zip(*(fields(box, looking.growth, looking.fields) for box in boxes), strict=True)
    shown = [prompt.replace_pictures([*map(cropped, prompt.pictures, view)]) for view in each]
    return {
        f"field {i} {begun}": ActivationRequest(view, write=1, logits=True, answered=begun)
        for i, view in enumerate(shown)
    }


def replay(search: Words, kept: Mapping[str, Activations]) -> Mapping[str, ActivationRequest]:
    """Passes that a search asks for next; {} at its end."""
    try:
        wanted = next(search)
        while wanted.keys() <= kept.keys():
            wanted = search.send([kept[name] for name in wanted])
    except StopIteration:
        return {}
    return wanted


def _until(pieces: Sequence[str], first: int) -> str:
    """The text up to the end of the word in which a token stands."""
    end = next(end for _, end, _ in words_of(pieces) if end > first)
    return spelt(pieces[:end])
