import json

from PIL import Image

from halludecode.engines.api import Sampling

BASE = ("generate", "--model", "some/model", "--prompt", "What is it?")


def test_the_answer_is_streamed_and_warnings_go_to_standard_error(
    cli, engines, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    result = cli(*BASE, "--image", "a.png", "--image", "b.png", "--strategy", "vcd")
    assert result.code == 0
    assert result.out == "a red cube\n"
    assert result.err == "warning: the strategy changed little\n"
    (engine,) = engines
    assert (engine.model_id, engine.engine, engine.arguments) == ("some/model", "hf", {})
    ((request, strategy, sampling),) = engine.asked
    assert request.prompt == "What is it?"
    assert [str(image) for image in request.images] == ["a.png", "b.png"]
    assert strategy == "vcd"
    assert sampling == Sampling()


def test_json_is_one_document(cli, engines):
    result = cli(*BASE, "--json", "--strategy", "vcd")
    document = json.loads(result.out)
    assert list(document) == [
        "text",
        "token_ids",
        "finish_reason",
        "strategy",
        "effect",
        "timings",
        "rows",
        "warnings",
    ]
    assert document["text"] == "a red cube"
    assert document["timings"]["prefill_ms"] == 2.0
    assert document["rows"] == ["main", "noised"]


def test_every_option_reaches_its_place(cli, engines):
    options = (
        "--temperature 0.7 --top-p 0.9 --top-k 5 --seed 3 --n 2 --logprobs 4 --stop . --stop !"
    )
    loading = "--dtype float32 --device cpu --revision v1 --trust-remote-code --engine hf"
    result = cli(*BASE, "--max-new-tokens", "9", *options.split(), *loading.split())
    assert result.code == 0
    (engine,) = engines
    assert engine.arguments == {
        "dtype": "float32",
        "device": "cpu",
        "revision": "v1",
        "trust_remote_code": True,
    }
    assert engine.asked[0][2] == Sampling(
        max_new_tokens=9,
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        stop=(".", "!"),
        seed=3,
        n=2,
        logprobs=4,
    )


def test_what_else_the_engine_takes_is_read_as_yaml(cli, engines):
    given = "max-model-len=4096 enforce_eager=true gpu_memory_utilization=9e-1 dtype=float32"
    given = [*given.split(), "limit_mm_per_prompt={image: 2}", "kv_cache_dtype=fp8", "seed="]
    words = [word for text in given for word in ("--engine-arg", text)]
    assert cli(*BASE, *words).code == 0
    assert engines[0].arguments == {
        "max_model_len": 4096,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.9,
        "dtype": "float32",
        "limit_mm_per_prompt": {"image": 2},
        "kv_cache_dtype": "fp8",
        "seed": None,
    }


def test_engine_arguments_that_say_nothing_or_twice_are_refused(cli, engines):
    for words, says in (
        (["--engine-arg", "max_model_len"], "'max_model_len': give KEY=VALUE"),
        (["--engine-arg", "=3"], "give KEY=VALUE"),
        (["--engine-arg", "a b=3"], "give KEY=VALUE"),
        (["--engine-arg", "a=3", "--engine-arg", "a=4"], "a is given twice"),
        (["--engine-arg", "dtype=auto", "--dtype", "auto"], "dtype and --dtype are both given"),
    ):
        result = cli(*BASE, *words)
        assert result.code == 2 and says in result.err
    assert engines == []


def test_bans_and_what_the_template_is_told_reach_their_places(cli, engines, tmp_path):
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "It"}]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(chat))
    options = (
        "--bad-word dog --bad-word cat --allowed-token-id 3 --logit-bias 4=-5 --logit-bias 5=1"
    )
    told = ("--chat-template-kwargs", '{"enable_thinking": false}', "--continue-final-message")
    base = ("generate", "--model", "some/model", "--messages", str(file))
    assert cli(*base, *options.split(), *told).code == 0
    ((request, _, sampling),) = engines[0].asked
    assert request.prompt == chat
    assert request.chat_template_kwargs == {"enable_thinking": False}
    assert request.continue_final_message
    assert sampling == Sampling(
        bad_words=("dog", "cat"), allowed_token_ids=(3,), logit_bias={4: -5.0, 5: 1.0}
    )


def test_what_cannot_be_read_of_them_is_one_sentence(cli, engines, tmp_path):
    base = ("generate", "--model", "some/model")
    file = tmp_path / "chat.json"
    file.write_text("{")
    assert "Give --prompt, or --messages" in cli(*base).err
    assert "Give --prompt, or --messages" in cli(*BASE, "--messages", "a.json").err
    assert "cannot be read" in cli(*base, "--messages", str(tmp_path / "none.json")).err
    assert "not JSON" in cli(*base, "--messages", str(file)).err
    file.write_text("{}")
    assert "must be a list of messages" in cli(*base, "--messages", str(file)).err
    assert "not JSON" in cli(*BASE, "--chat-template-kwargs", "thinking=no").err
    assert "write ID=NUMBER" in cli(*BASE, "--logit-bias", "dog").err
    assert "logit_bias must be" in cli(*BASE, "--logit-bias", "3=500").err
    assert engines == []


def test_several_answers_are_numbered(cli, engines):
    result = cli(*BASE, "--n", "2", "--temperature", "1")
    assert result.out == "[1] a red cube\n[2] a red cube\n"
    document = json.loads(cli(*BASE, "--n", "2", "--temperature", "1", "--json").out)
    assert [choice["text"] for choice in document["choices"]] == ["a red cube", "a red cube"]


def test_bad_input_is_reported_before_a_model_is_loaded(cli, engines):
    assert "'vcd'" in cli(*BASE, "--strategy", "vdc").err
    assert "must be in (0, 1]" in cli(*BASE, "--top-p", "2").err
    assert "set temperature > 0" in cli(*BASE, "--n", "2").err
    assert engines == []
