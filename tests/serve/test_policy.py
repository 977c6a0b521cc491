import pytest

from halludecode.core.errors import InvalidRequest
from halludecode.serve.policy import Policy

MAPPED = "vhr(map=/etc/heads.json)"


@pytest.mark.parametrize(
    ("model", "xargs"), [(None, {"strategy": MAPPED}), (f"testbed:{MAPPED}", None)]
)
def test_a_request_may_not_name_a_file_of_the_server(model, xargs):
    with pytest.raises(InvalidRequest, match="may not name files of the server"):
        Policy("testbed").strategy_of(model, xargs)


def test_the_operators_own_alias_and_default_may():
    policy = Policy("testbed", default=MAPPED, aliases=(MAPPED,))
    assert policy.strategy_of(f"testbed:{MAPPED}", None) == (MAPPED, True)
    assert policy.strategy_of(None, None) == (MAPPED, False)
