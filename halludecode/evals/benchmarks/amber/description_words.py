"""From a description to what it names, as AMBER's released script finds it.

Its nouns are NLTK's; a noun stands for an object by a list of words, or by being alike in spaCy's
vectors. spaCy's model is not on PyPI, so without it, and by default, only the list counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from halludecode.core.errors import InvalidData, MissingExtra
from halludecode.evals.benchmarks.amber.files import AmberItem, Lexicon

Nouns = Callable[[str], Sequence[str]]  # text to its lemmatised nouns, in order
Similarity = Callable[[str, str], float]

ALIKE = 0.8  # words more similar than this count as the same
_PARTS = "punkt_tab averaged_perceptron_tagger_eng wordnet"


@cache  # the tagger takes half a second to load
def nltk_nouns() -> Nouns:
    """NLTK's nouns: tokens in their own case, tags that start with NN, WordNet's noun lemmas.

    Raises:
        MissingExtra: NLTK or its data is not installed.
    """
    try:
        from nltk import pos_tag, word_tokenize
        from nltk.stem import WordNetLemmatizer
    except ImportError:
        raise MissingExtra('Nouns are found with NLTK; pip install "halludecode[eval]".') from None
    lemmatize = WordNetLemmatizer().lemmatize

    @lru_cache(maxsize=4096)  # a baseline is read once for every strategy beside it
    def nouns(text: str) -> tuple[str, ...]:
        tagged = pos_tag(word_tokenize(text))
        return tuple(lemmatize(word) for word, tag in tagged if tag[:2] == "NN")

    try:
        nouns("Two dogs.")
    except LookupError:  # NLTK's own message fills a screen
        raise MissingExtra(
            f"Nouns are found with NLTK's data; run python -m nltk.downloader {_PARTS}, or set "
            "NLTK_DATA to the folder that holds them."
        ) from None
    return nouns


def named_similarity(name: str) -> Similarity:
    """The similarity of two words under a model.

    Args:
        name: ``spacy:MODEL``; AMBER's released script uses ``spacy:en_core_web_lg``.

    Raises:
        InvalidData: The name has another form.
        MissingExtra: spaCy or the model is not installed.
    """
    library, _, model = name.partition(":")
    if library != "spacy" or not model:
        raise InvalidData(
            f"similarity {name!r} is unknown; give spacy:MODEL, such as spacy:en_core_web_lg."
        )
    try:
        import spacy

        load = cache(spacy.load(model))
    except (ImportError, OSError):  # spaCy raises OSError for a model it does not find
        raise MissingExtra(
            f"Similarity {name} needs spaCy and its model; pip install spacy, then "
            f"python -m spacy download {model}."
        ) from None

    @cache
    def similarity(a: str, b: str) -> float:
        documents: tuple[Any, Any] = load(a), load(b)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a word without a vector: similarity 0
            return float(documents[0].similarity(documents[1]))

    return similarity


# Matching ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Naming:
    """What a description names.

    Args:
        nouns: Its words that AMBER knows, with repetition.
        hallucinated: Those that stand for nothing in the picture.
        covered: Places in the truth list that were named.
        thought_of: Places in the list of absent objects that were named.
    """

    nouns: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    thought_of: frozenset[int]


def read_description(
    nouns: Iterable[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    lexicon: Lexicon,
    similarity: Similarity | None = None,
) -> Naming:
    """Matches the nouns of a description with what is in the picture and what is not.

    Args:
        nouns: Lemmatised nouns in order.
        truth: Objects in the picture.
        hallu: Absent objects that people might think of.
        lexicon: Which words stand for which object.
        similarity: Similarity of two words; above `ALIKE` they match. None: only equal words do.

    Raises:
        KeyError: ``truth`` or ``hallu`` has an object that the lexicon lacks.
    """
    kept = [noun for noun in nouns if noun in lexicon.words]
    present, absent = _stands_for(truth, lexicon), _stands_for(hallu, lexicon)
    wrong: list[str] = []
    covered: set[int | None] = set()
    thought_of: set[int | None] = set()
    for noun in kept:
        if noun in lexicon.safe:
            continue
        named = _first(present, noun)
        if named is None:
            # Both an equal and a similar word are marked, and they may be different ones.
            thought_of |= {_first(absent, noun), _first(absent, noun, similarity)}
            named = _first(present, noun, similarity)
        if named is None:
            wrong.append(noun)
        covered.add(named)
    return Naming(
        tuple(kept),
        tuple(wrong),
        frozenset(i for i in covered if i is not None),
        frozenset(i for i in thought_of if i is not None),
    )


@dataclass(frozen=True)
class Describer:
    """Reads descriptions.

    Args:
        lexicon: Which words count and what they stand for.
        nouns: Text to its nouns.
        similarity: Similarity of two words; None is 0 for any two.
        ways: Names of the last two, as they are recorded.
    """

    lexicon: Lexicon
    nouns: Nouns
    similarity: Similarity | None
    ways: Mapping[str, str]

    def read(self, text: str, item: AmberItem) -> dict[str, list[str]]:
        """The words of a description by what they are.

        Args:
            text: The raw description.
            item: What it should describe.

        Returns:
            ``nouns``, ``hallucinated``, ``covered`` (of the truth) and ``thought_of`` (of the
            absent objects), as in `Naming`.

        Raises:
            InvalidData: An object of the item has no lexicon entry.
        """
        self.check([*item.truth, *item.hallu], item.where or f"id {item.id}")
        naming = read_description(
            self.nouns(text), item.truth, item.hallu, self.lexicon, self.similarity
        )
        return {
            "nouns": list(naming.nouns),
            "hallucinated": list(naming.hallucinated),
            "covered": [item.truth[i] for i in sorted(naming.covered)],
            "thought_of": [item.hallu[i] for i in sorted(naming.thought_of)],
        }

    def check(self, objects: Iterable[str], where: str) -> None:
        """Checks that every object has a lexicon entry.

        Args:
            objects: Truth and absent objects of a picture.
            where: Where they stand, for messages.

        Raises:
            InvalidData: One has none.
        """
        foreign = [name for name in objects if name not in self.lexicon.relation]
        if foreign:
            raise InvalidData(
                f"{where}: {foreign[0]!r} is not a key of relation.json; "
                "take both files from one version of AMBER."
            )


def make_describer(
    lexicon: Lexicon | None,
    similarity: Similarity | str | None = None,
    nouns: Nouns | None = None,
) -> Describer:
    """Finds what reads descriptions; arguments as for `amber.score`.

    Raises:
        InvalidData: No lexicon, or a similarity of an unknown name.
        MissingExtra: NLTK, its data or spaCy's model is not installed.
    """
    if lexicon is None:
        raise InvalidData("descriptions need AMBER's relation.json and safe_words.txt.")
    alike = named_similarity(similarity) if isinstance(similarity, str) else similarity
    ways = {
        "nouns": "nltk" if nouns is None else way_name(nouns),
        "similarity": way_name(similarity),
    }
    return Describer(lexicon, nouns or nltk_nouns(), alike, ways)


def way_name(way: Callable[..., Any] | str | None) -> str:
    """Name of what finds or compares words, as it is recorded."""
    if way is None:
        return "none"
    return way if isinstance(way, str) else getattr(way, "__name__", type(way).__name__)


def _stands_for(objects: Sequence[str], lexicon: Lexicon) -> list[tuple[str, int]]:
    """Words and the place of the object they stand for; other words come before objects' own."""
    others = [(word, i) for i, name in enumerate(objects) for word in lexicon.relation[name]]
    return [*others, *((name, i) for i, name in enumerate(objects))]


def _first(
    words: Sequence[tuple[str, int]], noun: str, similarity: Similarity | None = None
) -> int | None:
    if similarity is None:
        return next((i for word, i in words if word == noun), None)
    return next((i for word, i in words if similarity(noun, word) > ALIKE), None)
