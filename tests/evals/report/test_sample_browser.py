import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from halludecode.evals.data.run_files import read_json, read_lines
from halludecode.evals.report import sample_browser as browser
from halludecode.evals.report.render import render
from halludecode.evals.results import chosen_samples as chosen
from halludecode.evals.results.build import Answers, arrange, labels
from halludecode.evals.results.kept_pictures import picture_path
from halludecode.evals.runner import batching as batches
from halludecode.evals.runner.run import run_eval
from tests.support import LONG
from tests.support import eval_world as world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here to run the page's script in"
)


class Hostile(world.FakeEngine):
    """Says things that could break out of a page."""

    def _one(self, request, strategy, scored):
        output = super()._one(request, strategy, scored)
        if scored:
            return output
        choice = output.choices[0]
        text = f"{choice.text} </script><script>alert(1)</script><!-- & \u2028 \U0001f600 a dog"
        return replace(output, choices=(replace(choice, text=text),))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(batches.BATCH, "hf", 4)
        run_eval(
            Hostile(model_id="fake"),
            tasks=["pope", "chair", "mme"],
            strategies=["greedy", "vcd", "pai"],
            data=[world.folder(root / "set", pictures=6)],
            prompt_preset="opera",
            progress=False,
            output=root / "run",
        )
    return root / "run"


def sources_of(folder, name="run"):
    run = read_json(folder / "run.json")
    answers = arrange(read_lines(folder / "samples.jsonl"), run["chair"])
    return browser.sources(name, folder, labels(run), answers)


# Which pictures ---------------------------------------------------------------------------------


def group(task, images, wrong=None):
    def line(image, strategy):
        mistakes = (wrong or {}).get((image, strategy), 0)
        if task == "chair":
            return {"image": image, "parsed": {"hallucinated": ["dog"] * mistakes}, "score": 1}
        return {"image": image, "parsed": "yes", "score": int(not mistakes)}

    lines = {
        s: {None: {i: line(image, s) for i, image in enumerate(images)}} for s in ("greedy", "vcd")
    }
    return Answers(task, "d", {}, lines)


def test_the_choice_hangs_on_names_and_answers_alone():
    images = [f"{n}.jpg" for n in range(300)]
    one = chosen.pictures([group("pope", images)], 20)
    two = chosen.pictures([group("pope", images[::-1])], 20)
    assert one == two
    assert len(one) == 20
    assert all(one.values())  # nothing differs, so all are drawn
    assert list(one) != sorted(one)


def test_half_of_the_pictures_are_those_where_strategies_differ():
    images = [f"{n}.jpg" for n in range(300)]
    apart = {(f"{n}.jpg", "vcd"): 1 + n for n in range(40)}
    found = chosen.pictures([group("chair", images, apart)], 20)
    picked = [int(name.removesuffix(".jpg")) for name, drawn in found.items() if not drawn]
    assert len(found) == 20
    assert 9 <= len(picked) <= 10
    assert min(picked) >= 40 - 12  # the largest spreads, less those drawn anyway


def test_a_smaller_choice_is_part_of_a_larger_one():
    images = [f"{n}.jpg" for n in range(90)]
    groups = [group("chair", images), group("mme", [f"color/{n}" for n in range(30)])]
    small, large = (set(chosen.pictures(groups, n)) for n in (12, 40))
    assert small < large
    assert any(name.startswith("color/") for name in small)


def test_chosen_pictures_are_kept_in_the_run_folder(made):
    kept = {p.name for p in (made / "pictures").rglob("*.png")}
    (source,) = sources_of(made)
    asked = {line["image"] for line in read_all(made)}
    assert set(chosen.pictures(source.groups)) == asked  # few enough to keep all
    assert {f"pic_{n}.png" for n in range(6)} <= kept


def test_pictures_of_one_name_under_two_subtasks_do_not_mix(tmp_path):
    one, two = (picture_path(tmp_path, "d", f"{s}/0020.png") for s in ("OCR", "code"))
    assert one != two


# What is written into the page ------------------------------------------------------------------


def test_every_sample_says_what_the_run_folder_says(made):
    data = json.loads(browser.embed(sources_of(made))["json"])
    lines = {(x["task"], x["split"], x["id"], x["strategy"]): x for x in read_all(made)}
    names = [info["spec"] for info in read_json(made / "run.json")["strategies"].values()]
    canonical = list(read_json(made / "run.json")["strategies"])
    assert data["sources"][0]["strategies"] == names
    seen = 0
    for sample in data["samples"]:
        for name, index, margin in zip(canonical, sample["by"], sample["margins"], strict=True):
            line = lines[sample["task"], sample["split"], sample["id"], name]
            said = sample["said"][index]
            assert said[0] == line["answer"]
            assert data["pictures"][sample["picture"]]["name"] == line["image"]
            if sample["label"]:
                assert said[1:] == [int(not line["score"]), line["parsed"]]
                assert margin == pytest.approx(line["margin"], abs=0.0051)
            else:
                assert said[1] == len(line["parsed"]["hallucinated"])
                pieces = [p if isinstance(p, str) else p[0] for p in said[3]]
                assert "".join(pieces) == line["answer"]
                wrong = [p[1] for p in said[3] if not isinstance(p, str) and p[2]]
                assert wrong == line["parsed"]["hallucinated"]
            seen += 1
    assert seen == len(lines)


def read_all(folder):
    return read_lines(folder / "samples.jsonl")


def test_what_a_model_says_cannot_leave_the_data(made):
    text = browser.embed(sources_of(made))["json"]
    assert not set("<>&\u2028\u2029") & set(text)
    page = render([made], "html")
    assert page.count("</script>") == 2  # the data's and the script's own
    assert "alert(1)" in page


def test_size_is_bounded_and_the_page_says_how_much_is_in(made):
    whole = browser.embed(sources_of(made))
    assert whole["samples"] == whole["all_samples"]
    room = 4000
    part = browser.embed(sources_of(made), room)
    assert 0 < part["samples"] < whole["samples"]
    assert part["pictures"] < part["all_pictures"] == whole["all_pictures"]
    heads = len(json.dumps(json.loads(part["json"])["sources"]))
    assert len(part["json"]) < room + heads + 100
    assert browser.embed([]) is None
    text = html.unescape(re.sub(r"\s+", " ", render([made], "html")))
    told = f"{whole['samples']} of {whole['all_samples']} samples"
    assert told in text


def test_sources_share_the_room_evenly(made):
    both = [*sources_of(made, "a"), *sources_of(made, "b")]
    data = json.loads(browser.embed(both, 9000)["json"])
    counts = [sum(p["source"] == n for p in data["pictures"]) for n in (0, 1)]
    assert counts[0] >= 1
    assert abs(counts[0] - counts[1]) <= 1


def test_a_missing_answer_is_told(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    lines = [x for x in read_all(folder) if x["task"] == "chair"]
    dropped = next(x for x in lines if x["strategy"] == "greedy")
    world.write_lines(folder / "samples.jsonl", [x for x in lines if x is not dropped])
    data = json.loads(browser.embed(sources_of(folder))["json"])
    (sample,) = (s for s in data["samples"] if s["id"] == dropped["id"])
    assert sample["by"][0] == -1
    assert min(sample["by"][1:]) >= 0


# The script -------------------------------------------------------------------------------------


def dom(path, state=""):
    """The page as a browser sees it, after its script has run."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={path.parent / 'profile'}",
        *("--virtual-time-budget=2000", "--dump-dom", f"file://{path}{state}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    return done.stdout


def cards(page):
    shown = page[page.index('class="cards"') : page.rindex('class="pager"')]
    return re.findall(r'<article class="card">.*?</article>', shown, re.DOTALL)


@needs_chromium
def test_script_filters_by_task_strategy_and_outcome(made, tmp_path):
    path = render([made], "html", tmp_path / "r.html")
    page = dom(path, "#browse?task=chair&strategy=vcd&outcome=differs")
    lines = {(x["strategy"], x["id"]): x for x in read_all(made) if x["task"] == "chair"}
    wrong = {key: len(x["parsed"]["hallucinated"]) for key, x in lines.items()}
    said = {key: x["answer"] for key, x in lines.items()}
    fit = [i for s, i in said if s == "greedy" and said["vcd(alpha=1.0)", i] != said[s, i]]
    shown = cards(page)
    assert len(fit) == len(shown) > 0
    assert all(f"id {i}" in card for i, card in zip(fit, shown, strict=True))
    struck = re.findall(r'<s class="wrong"[^>]*>([^<]+)</s>', "".join(shown))
    assert len(struck) == sum(wrong[s, i] for s, i in wrong if i in fit)
    assert "data:image/jpeg;base64," in shown[0]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in shown[0]


@needs_chromium
@pytest.mark.parametrize(
    ("outcome", "fits"),
    [
        ("right", lambda ours, theirs: ours["score"] == 1),
        ("wrong", lambda ours, theirs: ours["score"] == 0),
        ("better", lambda ours, theirs: ours["score"] > theirs["score"]),
        ("worse", lambda ours, theirs: ours["score"] < theirs["score"]),
    ],
)
def test_outcomes_of_yes_no_questions(made, tmp_path, outcome, fits):
    path = render([made], "html", tmp_path / "r.html")
    page = dom(path, f"#browse?task=pope&split=random&strategy=pai&outcome={outcome}")
    lines = [x for x in read_all(made) if x["split"] == "random"]
    greedy = {x["id"]: x for x in lines if x["strategy"] == "greedy"}
    fit = [x["id"] for x in lines if x["strategy"][:3] == "pai" and fits(x, greedy[x["id"]])]
    assert fit
    assert f"1 to {min(6, len(fit))} of {len(fit)} that fit" in page
    assert [f"id {i}<" in card for i, card in zip(fit, cards(page), strict=False)] == (
        [True] * min(6, len(fit))
    )


@needs_chromium
def test_buttons_page_through_and_the_address_keeps_the_place(made, tmp_path):
    path = render([made], "html", tmp_path / "r.html")
    clicks = "<script>document.querySelectorAll('[data-step=\"1\"]')[0].click();"
    clicks += "document.body.append(location.hash)</script></body>"
    (tmp_path / "c.html").write_text(path.read_text().replace("</body>", clicks))
    page = dom(tmp_path / "c.html", "#browse?task=pope")
    total = len({(x["split"], x["id"]) for x in read_all(made) if x["task"] == "pope"})
    assert f"7 to 12 of {total} that fit" in page
    assert "#browse?task=pope&amp;page=1" in page
    assert len(cards(page)) == 6


@needs_chromium
def test_without_scripts_tables_charts_and_gallery_remain(made, tmp_path):
    path = render([made], "html", tmp_path / "r.html")
    text = path.read_text()
    assert "script-src 'unsafe-inline'" in text
    path.write_text(text.replace("script-src 'unsafe-inline'", "script-src 'none'"))
    page = dom(path)
    assert re.search(r'<div id="browser" hidden', page)
    assert not cards(page)
    for part in ("<table>", '<svg class="chart', "What was said", "needs JavaScript"):
        assert part in page
