"""A state that did not come from attention goes through a layer's FFN, wherever its norms stand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from halludecode.models.feed_forward import feed_forward, projected


def layer(**norms: float) -> SimpleNamespace:
    """Norms that multiply by a number, and an FFN that adds one."""
    scales = {name: lambda x, by=by: x * by for name, by in norms.items()}
    return SimpleNamespace(mlp=lambda x: x + 1, input_layernorm=lambda x: x * 7, **scales)


@pytest.mark.parametrize(
    ("norms", "wanted"),
    [
        ({"post_attention_layernorm": 2}, [10.0, 16.0]),  # Llama, Qwen
        (
            {
                "post_attention_layernorm": 100,
                "pre_feedforward_layernorm": 2,
                "post_feedforward_layernorm": 3,
            },
            [24.0, 38.0],
        ),  # Gemma
        ({"post_attention_layernorm": 2, "post_mlp_layernorm": 3}, [24.0, 38.0]),  # GLM
        ({}, [25.0, 41.0]),  # Cohere
    ],
)
def test_norms_stand_where_the_family_has_them(norms, wanted):
    h = torch.tensor([[3.0], [5.0]])
    assert feed_forward(layer(**norms), h).flatten().tolist() == wanted


def test_a_projection_that_gives_a_bias_too():
    class Pair(torch.nn.Linear):
        def forward(self, x):  # type: ignore[override]
            return super().forward(x), None

    project = Pair(6, 2, bias=False)
    heads = torch.randn(4, 3, 2)
    made = projected(SimpleNamespace(self_attn=SimpleNamespace(o_proj=project)), heads)
    torch.testing.assert_close(made, heads.reshape(4, 6) @ project.weight.T)
