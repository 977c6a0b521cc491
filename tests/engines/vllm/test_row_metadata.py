"""What travels with a row, and the names that say where it goes."""

from __future__ import annotations

import pytest

from halludecode.engines.vllm.row_metadata import Names, RowMetadata, metadata_of, replica_of


def test_what_travels_with_a_row_comes_back_from_its_sampling_parameters():
    class Params:
        extra_args = RowMetadata(
            "g", 1, ["main", "noised"], ["answer", "prefill"], noise_key=5
        ).extra_args()

    row = metadata_of(Params)
    assert (row.name, row.life, row.size, row.noise_key) == ("noised", "prefill", 2, 5)
    Params.extra_args = {"other": 1}
    assert metadata_of(Params) is None


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_requests_take_replicas_in_turn_and_their_passes_go_along(passes):
    name = Names(replicas=2)
    taken, names = [], []
    for _ in range(4):
        names.append(name())
        taken.append(replica_of(f"{names[-1]}.0#1"))
        names += [name(taken[-1]) for _ in range(passes)]
        assert {replica_of(each) for each in names[-1 - passes :]} == {taken[-1]}
    assert taken in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert len(set(names)) == len(names)
