import pytest

from halludecode.core.errors import HalluDecodeError, InvalidRequest, UnsupportedStrategy
from halludecode.serve.policy import Policy, allowed_of

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


FREE, FIXED = ("testbed:vcd(alpha=2.0)", "testbed:var+vcd(beta=0)"), "testbed:vcd(alpha=0.5)"


@pytest.mark.parametrize("model", FREE)
def test_a_model_name_reaches_every_parameter_where_the_operator_leaves_them_free(model):
    strategy = model.partition(":")[2]
    for allow in ((), ("vcd", "var"), ("vcd+var",)):
        policy = Policy("testbed", allowed=allowed_of(allow))
        assert policy.strategy_of(model, None) == (strategy, True)


@pytest.mark.parametrize("model", FREE)
def test_where_the_operator_fixed_them_it_is_refused_in_one_sentence(model):
    policy = Policy("testbed", allowed=allowed_of(["vcd(alpha=0.5)+var"]))
    assert policy.strategy_of(FIXED, None) == ("vcd(alpha=0.5)", True)
    assert policy.strategy_of(f"{FIXED}+var(tau=2)", None)[1]
    says = r"'vcd\(.*\)' is not allowed .* greedy, var, vcd\(alpha=0.5,beta=0.1,noise_step=500\)\.$"
    for named in ((model, None), ("testbed", {"strategy": model.partition(":")[2]})):
        with pytest.raises(UnsupportedStrategy, match=says):
            policy.strategy_of(*named)


def test_what_is_fixed_may_be_all_defaults_or_a_preset():
    assert allowed_of(["vcd()"]) == {"vcd(alpha=1.0,beta=0.1,noise_step=500)"}
    assert allowed_of(["vcd@official-llava-pope", "pai"]) > {"pai"}
    with pytest.raises(HalluDecodeError, match="Did you mean 'vcd'"):
        allowed_of(["pai+vdc"])


NAMES = {
    "testbed:": "cannot read",
    "testbed:vcd:vcd": "cannot read",
    "testbed:vcd(alpha=0.5": "brackets or quotes",
    "testbed:vcd(alpha=__import__('os').getcwd())": "cannot read the value",
    "testbed:vcd(alpha=0.5)\n+greedy; rm": "cannot read",
    f"testbed:vcd{'+vcd' * 300}": "at most 1000",
    f"testbed:vcd(alpha={'9' * 900})": r"at most 1e\+30",
    f"testbed:vcd(alpha={'(' * 400}": "brackets or quotes",
    "testbed:vcd(alpha=1e400)": "finite",
}


@pytest.mark.parametrize("name", NAMES, ids=[name[:30].strip() for name in NAMES])
def test_whatever_a_model_is_called_is_one_sentence(name):
    with pytest.raises(HalluDecodeError, match=NAMES[name]) as caught:
        Policy("testbed").strategy_of(name, None)
    assert str(caught.value).endswith(".")


def test_other_models_are_not_ours_to_read():
    assert Policy("testbed").strategy_of("testbed2:vcd(alpha=", None) == ("greedy", False)
