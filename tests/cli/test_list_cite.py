import json
import re
from pathlib import Path

import pytest

import halludecode as hd
from halludecode.core.registry import STRATEGIES


@pytest.fixture(scope="module")
def names():
    return STRATEGIES.names()


def test_list_shows_every_strategy(cli, names):
    result = cli("list")
    assert result.code == 0
    for name in names:
        assert any(line.split()[:1] == [name] for line in result.out.splitlines())
    assert "arXiv:2311.16922" in result.out


def test_list_says_what_methods_that_are_not_here_would_need(cli, names):
    from halludecode.catalog import ABSENT

    shown = cli("list").out
    assert not set(ABSENT) & set(names)
    for name in ABSENT:
        assert any(line.split()[:1] == [name] for line in shown.splitlines())


def test_list_json_holds_parameters_with_bounds(cli, names):
    listed = json.loads(cli("list", "--json").out)
    assert [entry["name"] for entry in listed] == names
    vcd = next(entry for entry in listed if entry["name"] == "vcd")
    assert vcd["paper"]["arxiv"] == "2311.16922"
    assert vcd["rows"] == ["main", "noised"]
    beta = next(param for param in vcd["params"] if param["name"] == "beta")
    assert (beta["default"], beta["bounds"]) == (0.1, "in [0, 1]")
    assert vcd["off"]["alpha"] == 0.0


def test_list_name_shows_it_in_full(cli):
    result = cli("list", "vcd")
    assert result.code == 0
    for part in ("noise_step", "500", "in [0, 1000)", "equals greedy at: alpha=0.0", "p(y | v)"):
        assert part in result.out


def test_list_name_json_is_one_object(cli):
    assert json.loads(cli("list", "greedy", "--json").out)["name"] == "greedy"


@pytest.mark.parametrize("command", ["list", "cite"])
def test_unknown_name_gives_near_misses(cli, command):
    result = cli(command, "vdc")
    assert (result.code, result.out) == (2, "")
    assert "'vcd'" in result.err
    result = cli(command, "naturalbenhc")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'naturalbench'" in result.err
    assert "benchmarks: amber" in result.err


def test_list_shows_a_row_under_the_names_it_has_in_data(cli):
    shown = cli("list", "popev2").out
    assert "image_name=edited_0.png" in shown
    assert "label=No" in shown
    assert "answer=" not in shown


def test_cite_prints_bibtex_once_per_name(cli):
    result = cli("cite", "vcd", "m3id", "vcd")
    assert result.code == 0
    assert result.out.count("@inproceedings{") == 2
    assert "2311.16922" in result.out


def test_cite_without_a_paper_says_so(cli):
    result = cli("cite", "greedy")
    assert result.code == 2
    assert "greedy has no paper" in result.err


def test_list_kind_shows_those_whose_hooks_do_it(cli):
    shown = {}
    for kind in ("search", "steering", "attention", "layers", "contrast", "other"):
        shown[kind] = {
            info["name"] for info in json.loads(cli("list", "--kind", kind, "--json").out)
        }
    assert shown["search"] == {"opera"}
    assert "vista" in shown["steering"] & shown["layers"] and "dola" in shown["layers"]
    assert "pai" in shown["attention"] & shown["contrast"]
    assert "sid" in shown["contrast"] - shown["attention"], "it edits its own row alone"
    assert "vhr" in shown["attention"] - shown["contrast"], "its row is gone before the scores"
    assert {"greedy", "apc_only"} <= shown["other"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--kind", "layer"), "Did you mean 'layers'"), (("vcd", "--kind", "layers"), "leave out")],
)
def test_list_kind_says_what_is_wrong(cli, words, said):
    result = cli("list", *words)
    assert result.code == 2 and said in result.err


def test_everything_with_a_paper_can_be_cited(cli, names):
    cited = [name for name in names if STRATEGIES.get(name).paper is not None]
    assert set(names) - set(cited) == {"greedy"}
    result = cli("cite", *cited)
    assert result.code == 0 and result.out.count("\n@") + 1 == len(cited)


def test_cite_alone_cites_the_package_as_its_own_files_do(cli):
    result = cli("cite")
    assert result.code == 0
    (heading,) = re.findall(
        rf"^## {re.escape(hd.__version__)} \((\d+)-", read("CHANGELOG.md"), re.M
    )
    assert f"year    = {{{heading}}}" in result.out
    assert f"version = {{{hd.__version__}}}" in result.out
    cff = read("CITATION.cff")
    for field, value in (("title", "halludecode"), ("license", "Apache-2.0")):
        assert f"{field}: {value}" in cff and value in result.out
    (author,) = re.findall(r'- name: "(.+)"', cff)
    assert f"author  = {{{{{author}}}}}" in result.out


def read(name):
    return (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
