"""Readers of one engine get their own outputs, whoever ran the step."""

from __future__ import annotations

from types import SimpleNamespace

from halludecode.engines.vllm.frontend.output_router import OutputRouter


class Engine:
    """Gives prepared steps."""

    def __init__(self, *steps):
        self.steps = [[SimpleNamespace(request_id=name) for name in step] for step in steps]

    def step(self):
        return self.steps.pop(0)


def ids(outputs):
    return [output.request_id for output in outputs]


def test_outputs_wait_for_the_reader_they_belong_to():
    router, engine = OutputRouter(), Engine(["a", "b", "b"], ["a"])
    router.open("a")
    router.open("b")
    assert ids(router.step(engine, ["a"])) == ["a"]
    assert ids(router.step(engine, ["b"])) == ["b", "b"] and len(engine.steps) == 1
    assert ids(router.step(engine, ["a", "b"])) == ["a"] and not engine.steps


def test_what_nobody_waits_for_is_dropped():
    router, engine = OutputRouter(), Engine(["gone", "a"])
    router.open("gone")
    router.open("a")
    router.close(["gone", "never there"])
    assert ids(router.step(engine, ["a"])) == ["a"]
    assert router._waiting == {"a": []}
