"""One table holds the words for every need: of verbs, engines and families."""

from halludecode.catalog import strategies
from halludecode.core.attention import EDIT_VERBS, SCORE_VERBS
from halludecode.core.needs import WORDS, in_words, quoted
from halludecode.engines import ENGINES, PROVIDES
from halludecode.models.families import FAMILIES


def test_every_need_has_words():
    for needs in (SCORE_VERBS, EDIT_VERBS, *PROVIDES.values(), *(i.needs for i in strategies())):
        assert set(needs) <= WORDS.keys()
    assert {need for family in FAMILIES.values() for need in family.lacks} <= WORDS.keys()
    assert set(WORDS) - set().union(*PROVIDES.values()) == {"generate"}, "served by no engine"
    assert tuple(PROVIDES) == ENGINES[:2]


def test_words_come_once_in_the_order_of_the_table():
    needs = ("scale_scores", "add_scores", "rows")
    assert in_words(needs) == ("extra rows", "edits attention scores")
    assert quoted(needs) == "'extra rows', 'edits attention scores'"
