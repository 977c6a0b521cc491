"""What loading refuses is one sentence with the cure, before weights are fetched where it can."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import halludecode as hd
from halludecode.core.errors import InvalidModel, InvalidRequest
from halludecode.models.loading import load_model
from halludecode.testbed.assets import model_path
from tests.support import families
from tests.support.processes import REPO, environment

FILES = [
    file for file in Path(model_path("testbed")).iterdir() if file.suffix in (".json", ".jinja")
]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint's files without its weights."""
    for file in FILES:
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def config(folder: Path, **given) -> str:
    (folder / "config.json").write_text(json.dumps(given))
    return str(folder)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"model_type": "kosmos-2"}, "'kosmos-2' has no layout"),
        ({"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}, "llava-1.5-7b-hf"),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip"}, "llava-1.5-7b-hf"),
        ({"model_type": "llava_qwen"}, "llava-onevision-qwen2-7b-ov-hf"),
        ({"model_type": "llava_qwen2"}, "FastVLM-7B"),
        ({"model_type": "internvl_chat"}, "InternVL3-8B-hf"),
        ({"model_type": "multi_modality"}, "deepseek-vl-1.3b-chat or .*Janus-Pro-1B"),
        ({"model_type": "ovis"}, "Ovis2-1B-hf"),
        ({"model_type": "molmo"}, "'molmo'.*take a model of another one, such as Qwen"),
        ({"model_type": "phi4mm"}, "'phi4mm'.*take a model of another one, such as Qwen"),
        ({"model_type": "nobodyknows"}, "'nobodyknows' has no layout"),
        ({}, "the config cannot be loaded"),
    ],
    ids=str,
)
def test_a_family_is_refused_from_its_config(folder, given, why):
    with pytest.raises(InvalidModel, match=why):
        hd.load(config(folder, **given))


REFUSE = """
import re, sys
from pathlib import Path
import halludecode as hd
try:
    hd.load(sys.argv[1], engine=sys.argv[2])
except hd.InvalidModel as error:
    print(error)
assert "torch" not in sys.modules
print(int(re.search("VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)  # MiB
"""


@pytest.mark.parametrize("engine", ("hf", "vllm"))
def test_a_family_is_refused_before_torch_is_imported(folder, engine):
    """Nor does a machine need the memory that torch takes: 22 MiB here, 454 with transformers'."""
    words = [sys.executable, "-c", REFUSE, config(folder, model_type="nobodyknows"), engine]
    env = environment(REPO)
    run = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
    said, peak = run.stdout.splitlines()
    assert "'nobodyknows' has no layout" in said
    assert int(peak) < 300


@pytest.mark.parametrize("text", ("", "[1]", '{"model_type": 3}', "{"))
def test_a_config_that_is_none_is_left_to_who_loads_it(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InvalidModel, match="the config cannot be loaded"):
        hd.load(str(folder))


def test_an_adapter_without_its_model_says_how_to_load_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"PeftModel\.from_pretrained"):
        hd.load(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"max_model_len": 512}, InvalidRequest, "an option of engine='vllm'"),
        ({"tensor_parallel_size": 2}, InvalidRequest, "an option of engine='vllm'"),
        ({"load_in_4bit": True}, InvalidRequest, r"BitsAndBytesConfig\(load_in_4bit=True\)"),
        ({"nosuch": 1}, InvalidModel, "takes nosuch=; leave it out"),
        ({"attn_implementation": "nosuch"}, InvalidModel, "attn_implementation"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_name_the_cure(options, error, why):
    with pytest.raises(error, match=why):
        hd.load("testbed", **options)


def test_a_package_that_a_tower_needs_is_named(monkeypatch, tmp_path_factory):
    from transformers.utils import import_utils

    path = families.family_path("fast_vlm", tmp_path_factory)  # built with it
    missing = (lambda: False, import_utils.TIMM_IMPORT_ERROR)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", missing)
    with pytest.raises(InvalidModel, match=r"requires the timm library.*Install the package that"):
        hd.load(str(path))


def test_weights_cut_short_are_one_sentence(folder):
    weights = next(Path(model_path("testbed")).glob("*.safetensors")).read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InvalidModel, match="the model cannot be loaded"):
        hd.load(str(folder))


LACKING = {
    "llava": ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
    "llava_next": ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
    "llava_onevision": ("num_image_tokens", "vision_feature_select_strategy"),
    "instructblip": ("num_query_tokens",),
}


@pytest.mark.parametrize("family", LACKING)
def test_what_a_processors_files_leave_out_comes_from_the_models_config(
    family, tmp_path, tmp_path_factory
):
    path = shutil.copytree(families.family_path(family, tmp_path_factory), tmp_path / "model")
    model, whole = load_model(str(path))
    kept = json.loads((path / "processor_config.json").read_text())
    lacking = {name: value for name, value in kept.items() if name not in LACKING[family]}
    assert lacking != kept
    (path / "processor_config.json").write_text(json.dumps(lacking))
    _, processor = load_model(str(path))
    for name in LACKING[family]:
        assert getattr(processor, name) == getattr(whole, name)
    for name in LACKING[family]:
        setattr(processor, name, None)
    request = hd.Request("What is this?", families.pictures()[:1])
    short = hd.Sampling(max_new_tokens=2)
    made = hd.load(model, processor=processor).generate(request, "greedy", short)[0]
    assert made.token_ids == hd.load(model, processor=whole).generate(
        request, "greedy", short
    )[0].token_ids  # fmt: skip


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    """A process that `spawn` starts imports the script, which starts vLLM once more."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "from halludecode.engines.vllm.compat.startup_errors import check_guarded\n"
        "try:\n"
        "    check_guarded()\n"
        "except Exception as error:\n"
        "    print(error, flush=True)\n"
        "    os._exit(3)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start()\n"
        "    child.join()\n"
        "    raise SystemExit(child.exitcode)\n"
    )
    env = environment(REPO)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert run.returncode == 3
    assert 'if __name__ == "__main__":' in run.stdout
