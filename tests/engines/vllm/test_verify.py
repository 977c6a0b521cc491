"""`doctor --verify` on both engines: that they agree, and what one alone serves."""

from __future__ import annotations

from halludecode.cli import verify


class Open:
    """An engine that other tests go on with."""

    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def close(self):
        pass


def test_both_engines_agree_on_each_kind_of_strategy(testbed, vllm_engine):
    loaded = {"hf": testbed, "vllm": vllm_engine("testbed")}
    chosen = ("greedy", "vcd", "pai", "dola", "opera")
    found = verify.report("testbed", lambda model, engine: Open(loaded[engine]), specs=chosen)
    assert found["broken"] == []
    words = {spec: [c["word"] for c in by.values()] for spec, by in found["strategies"].items()}
    assert words == {spec: ["ok", "ok"] for spec in chosen} | {"opera": ["ok", "refused"]}
    same = [[check["why"] for check in found["strategies"][spec].values()] for spec in chosen[:-1]]
    assert all(mine == theirs for mine, theirs in same)
    assert "vllm" in found["engines"]["vllm"]["versions"]
