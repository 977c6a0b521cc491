"""A wheel's files tell what is gone without being imported."""

from __future__ import annotations

import zipfile

from halludecode.engines.vllm.compat import vllm_api
from tests.support import vllm_wheel

SAMPLER = """
class Base:
    def forward(self, logits, sampling_metadata): ...

class Sampler(Base):
    pass
"""


def test_names_methods_and_parameters_are_looked_up(tmp_path, capsys):
    wheel = tmp_path / "vllm-9.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("vllm/v1/__init__.py", "")
        archive.writestr("vllm/v1/sample/__init__.py", "")
        archive.writestr("vllm/v1/sample/sampler.py", SAMPLER)
        archive.writestr("vllm/exceptions.py", "class VLLMValidationError(Exception): ...")
    assert vllm_wheel.main(str(wheel)) == 1
    told = capsys.readouterr().out
    assert "vllm.v1.sample.sampler.Sampler.sample" in told  # neither its own nor inherited
    assert "vllm.v1.sample.sampler.Sampler.forward" not in told
    assert "vllm.exceptions.VLLMValidationError" not in told
    assert "vllm.exceptions.GenerationError" in told
    assert "vllm.entrypoints.common.startup or vllm.entrypoints.serve.utils" in told
    assert len(told.splitlines()) < 1 + len(vllm_api.imported()) + 100
