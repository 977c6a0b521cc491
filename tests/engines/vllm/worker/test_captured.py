"""What a pass keeps comes in pieces, and again after a preemption."""

from __future__ import annotations

import torch

from halludecode.engines.vllm.worker.captured import Captured, activations_of, keep_piece

ABOUT = {
    **dict.fromkeys(("counts", "spans", "token_ids", "pieces"), ()),
    **{"mask": None, "text": "", "word_logits": {}},
}


def kept(pieces, answered):
    """[H, (answered,) N_img] of pieces (start, tokens) whose numbers say token and run."""
    captured = Captured()
    for run, (start, tokens) in enumerate(pieces):
        at = torch.arange(start, start + tokens).float() + run / 10
        keep_piece(captured.image, 2, start, at[None, :, None].expand(3, tokens, 5))
        keep_piece(captured.hidden, 2, start, at[:, None].expand(tokens, 7))
    capture = {**dict.fromkeys(("heads", "keys"), ()), "hidden": (2,), "image": (2,)}
    capture |= {"answered": answered, "every_token": answered > 0, "logits": False}
    found = activations_of(captured, {**ABOUT, "capture": capture})
    assert torch.equal(found.hidden[0, ..., 0], found.image[0, 0, ..., 0])
    return found.image[0]


def test_pieces_of_an_answers_beginning_are_put_together():
    image = kept([(90, 2), (92, 5), (97, 1)], 8)
    assert image.shape == (3, 8, 5)
    torch.testing.assert_close(
        image[0, :, 0], torch.tensor([90.0, 91, 92.1, 93.1, 94.1, 95.1, 96.1, 97.2])
    )


def test_what_is_computed_again_takes_the_place_of_what_was():
    """Cut elsewhere: a piece of the first run behind the second's would stand twice."""
    image = kept([(90, 2), (92, 5), (90, 4), (94, 4)], 8)
    torch.testing.assert_close(
        image[0, :, 0], torch.tensor([90.2, 91.2, 92.2, 93.2, 94.3, 95.3, 96.3, 97.3])
    )


def test_of_the_last_token_alone_there_is_one():
    captured = Captured()
    keep_piece(captured.image, 2, 9, torch.ones(3, 1, 5))
    capture = {**dict.fromkeys(("hidden", "heads", "keys"), ()), "image": (2,), "answered": 0}
    about = {**ABOUT, "capture": {**capture, "every_token": False, "logits": False}}
    assert activations_of(captured, about).image.shape == (1, 3, 5)
