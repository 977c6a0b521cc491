"""Hidden tokens come back, in order, whatever was hidden twice."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from halludecode.engines.vllm.scheduler.hidden_tokens import HiddenTokens, mend_copies


@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5))
def test_what_is_hidden_comes_back(rows):
    requests = [SimpleNamespace(_all_token_ids=list(range(length))) for length, _ in rows]
    hidden = HiddenTokens()
    for request, (length, keep) in zip(requests, rows, strict=True):
        assert hidden.hide(request, keep) is (keep < length)
        assert request._all_token_ids == list(range(min(keep, length)))
    shown = hidden.show()
    assert shown == [r for r, (length, keep) in zip(requests, rows, strict=True) if keep < length]
    assert [r._all_token_ids for r in requests] == [list(range(length)) for length, _ in rows]
    assert not hidden and not hidden.show()


def test_copies_of_resumed_rows_are_made_again():
    row = SimpleNamespace(request_id="g", all_token_ids=[1, 2, 3])
    cached = SimpleNamespace(all_token_ids={"g": [1, 2], "other": [5]})
    step = SimpleNamespace(scheduled_cached_reqs=cached, scheduled_new_reqs=[])
    mend_copies(step, [row])
    assert cached.all_token_ids == {"g": [1, 2, 3], "other": [5]}


def test_tokens_of_rows_that_come_to_v2_are_whole():
    rows = [SimpleNamespace(request_id=name, all_token_ids=[1, 2, 3]) for name in ("g", "v1")]
    new = [
        SimpleNamespace(req_id=name, prefill_token_ids=ids)
        for name, ids in (("g", [1, 2]), ("v1", None), ("other", [5]))
    ]
    step = SimpleNamespace(scheduled_cached_reqs=SimpleNamespace(), scheduled_new_reqs=new)
    mend_copies(step, rows)
    assert [one.prefill_token_ids for one in new] == [[1, 2, 3], None, [5]]
    assert new[0].prefill_token_ids is not rows[0].all_token_ids
