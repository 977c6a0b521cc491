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


@pytest.mark.parametrize("spec", ["agla(blip=/etc)", "agla(blip=some/model)", "spin(map=a)"])
def test_nor_a_model_whatever_the_parameter_is_called(spec):
    for policy in (Policy("testbed"), Policy("testbed", default="vcd", aliases=("agla",))):
        with pytest.raises(InvalidRequest, match="may not name files of the server or models"):
            policy.check_requested(spec)
        policy.check_requested("vdgd(request='What is in {question}?')")
        policy.check_requested("agla(matcher=self)")
