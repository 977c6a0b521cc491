"""Features of pictures as families give them."""

from __future__ import annotations

import torch

from halludecode.engines.hf import model as hf_model


def test_features_of_pictures_come_in_three_forms():
    views = [1, 3]
    tensor = torch.arange(4 * 2 * 5).reshape(4, 2, 5)  # [views, n, D]
    wanted = [tensor[:1].flatten(0, 1), tensor[1:].flatten(0, 1)]
    for given in (tensor, [t.clone() for t in wanted], [tensor.flatten(0, 1)]):
        found = hf_model._by_picture(given, views)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
