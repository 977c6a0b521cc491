"""VDGD's description: what the model is asked to write of a picture, and how its answer sees it.

Ghosh et al., "Visual Description Grounding Reduces Hallucinations and Boosts Reasoning in LVLMs",
ICLR 2025, arXiv 2405.15683. The request quotes the user's question and asks for everything the
picture holds; its words are ours, to the same effect as those of the released code. The description
then stands before the question in the user's turn, on a line of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from halludecode.core.activations import ActivationRequest
from halludecode.core.prompt import Prompt, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from halludecode.core.activations import Activations

REQUEST = (
    "Somebody has to do this task with the picture: {question}\n\nSo that the task can be done "
    "from your words, describe the picture in detail. Of a real scene name every object in front "
    "and behind, how many there are, their colour, shape and other properties, and how they stand "
    "to each other. Of a chart, table, diagram or page give every number and all its text."
)


def requests(prompt: Prompt, words: str | None = None) -> list[Prompt]:
    """One request for a description per picture of a prompt.

    Args:
        prompt: The user's.
        words: The request, in which ``{question}`` stands for the user's last words; None is
            `REQUEST`.

    Raises:
        InvalidRequest: The prompt is already rendered, so that nothing else can be asked.
    """
    text = (words or REQUEST).replace("{question}", prompt.question)
    prompt.with_instruction(text)  # refuses what cannot be asked
    return [Prompt((Turn("user", (picture, text)),)) for picture in prompt.pictures]


def descriptions(prompt: Prompt, words: str | None, tokens: int) -> dict[str, ActivationRequest]:
    """A pass per picture that writes its description, with the logits that predicted it."""
    return {
        str(i): ActivationRequest(request, write=tokens, logits=True)
        for i, request in enumerate(requests(prompt, words))
    }


def described(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a description before the words of its last user turn."""
    at = max((i for i, turn in enumerate(prompt.turns) if turn.role == "user"), default=-1)
    parts = list(prompt.turns[at].parts)
    spot = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    parts[spot : spot + 1] = [text + "\n" + "".join(str(part) for part in parts[spot : spot + 1])]
    turns = list(prompt.turns)
    turns[at] = replace(turns[at], parts=tuple(parts))
    return replace(prompt, turns=tuple(turns))


def grounds(
    passes: Sequence[Activations], size: int, reduction: str, tokens: int
) -> dict[str, Any]:
    """What descriptions give an answer to stand on.

    Args:
        passes: One per picture, with text and logits.
        size: V, the vocabulary's size.
        reduction: As for `evidence`.
        tokens: Most tokens a description could have; a shorter one was ended by its last token.

    Returns:
        "text"; "evidence" float32 [V], all zero without a description; "end" int64 [], the token
        that ended a description, -1 if none was ended.
    """
    import torch

    tables = [written.logits for written in passes if written.logits is not None]
    ends = [written.token_ids[-1] for written in passes if 0 < len(written.token_ids) < tokens]
    return {
        "text": "\n".join(written.text for written in passes),
        "evidence": evidence(tables, reduction) if tables else torch.zeros(size),
        "end": torch.tensor(ends[-1] if ends else -1),
    }


def evidence(logits: Sequence[Tensor], reduction: str) -> Tensor:
    """float32 [V]: how well the descriptions predicted each token.

    Args:
        logits: Per description float32 [n, V], the raw logits that predicted its tokens.
        reduction: Over positions j, of KL(onehot(w) || q_j) = -ln q_j(w): "min", "avg" or "sum".

    Returns:
        Minus the reduced divergence.
    """
    import torch

    log_q = torch.cat(list(logits)).float().log_softmax(-1)
    if reduction == "min":
        return log_q.amax(0)
    return log_q.mean(0) if reduction == "avg" else log_q.sum(0)


def end_apart(scores: Tensor, main: Tensor, candidates: Tensor, end: Tensor) -> Tensor:
    """Scores under which the end token keeps its own probability among the candidates.

    The other candidates share the rest by their scores.

    Args:
        scores: float32 [B, V].
        main: float32 [B, V], the model's own logits.
        candidates: bool [B, V].
        end: int64 [B], the end token; -1 leaves a row as it is, but for a constant.
    """
    import torch

    is_end = torch.arange(scores.shape[-1], device=end.device) == end[:, None]
    rest = candidates & ~is_end
    mass, own_mass = (x.masked_fill(~rest, -torch.inf).logsumexp(-1) for x in (scores, main))
    return main.where(is_end, scores + (own_mass - mass).nan_to_num(0)[:, None])
