"""Names and paths of what comes with the package: all that engines know of the testbed.

The world that the pictures are of is elsewhere in this package and is not loaded by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from halludecode.core.errors import InvalidModel, InvalidRequest

PLANTED = "testbed-planted"
MODELS = ("testbed", PLANTED)  # names of models; the second is an edit of the first at load

PICTURES = 8  # shown in examples as testbed:1 to testbed:8
SCHEME = "testbed:"
_ASSETS = Path(__file__).parent / "assets"

# The words the model was trained on. POPE's are appended to the question; MME's questions end with
# them already.
CAPTION = "Please describe this image in detail."
QUESTION = " Please answer yes or no."
PROMPTS: Mapping[str, str] = MappingProxyType({"chair": CAPTION, "pope": QUESTION, "mme": ""})


def model_path(name: str = "testbed") -> Path:
    """The folder of the embedded model, as ``from_pretrained`` wants it.

    Args:
        name: One of `MODELS`; the planted one is made in the cache on first use.

    Raises:
        InvalidModel: The installation lacks it.
        InvalidData: The planted one cannot be written to the cache.
    """
    folder = _ASSETS / "model"
    if not (folder / "model.safetensors").is_file():
        raise InvalidModel(f"{folder}: the embedded model is missing; reinstall halludecode.")
    if name == PLANTED:
        from halludecode.testbed import planted

        return planted.model_path(folder)
    return folder


def picture_path(number: int) -> Path:
    """The PNG of a shipped picture, 120 x 120 pixels; what is in it says `pictures.SHOWN`.

    Args:
        number: 1 to `PICTURES`.

    Raises:
        InvalidRequest: There is no such picture.
    """
    if number not in range(1, PICTURES + 1):
        raise InvalidRequest(
            f"The testbed has no picture {number}; there are testbed:1 to testbed:{PICTURES}."
        )
    return _ASSETS / "pictures" / f"{number}.png"


def named_picture(source: object) -> Path | None:
    """The path that ``testbed:N`` stands for; None for what is no such name.

    Raises:
        InvalidRequest: N is not a number of `picture_path`.
    """
    if not isinstance(source, str | Path) or not str(source).startswith(SCHEME):
        return None
    number = str(source).removeprefix(SCHEME)
    if not (number.isascii() and number.isdigit()):
        raise InvalidRequest(f"{source}: write testbed:1 to testbed:{PICTURES}.")
    return picture_path(int(number))


def card(name: str = "testbed") -> str:
    """A model's card, in Markdown: the embedded one's, or what planting did to it."""
    if name == PLANTED:
        from halludecode.testbed import planted

        return planted.card(model_path())
    return (_ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")
