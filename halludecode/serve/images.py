"""How the server gets pictures: from where the operator allows, within limits, decoded as we do.

vLLM asks a registered connector for every picture of every endpoint; ours is registered in its
place by `install`, so that plain requests keep to the same rules.
"""

from __future__ import annotations

import io
import os
import warnings
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vllm.connections import HTTPResponseSizeExceededError
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO

from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.images import load_picture
from halludecode.serve.policy import NOWHERE, Policy

NAME = "halludecode"


class PictureIO(ImageMediaIO):
    """Decodes one picture within the operator's limits, upright and in RGB."""

    policy: Policy
    where = "The image"

    def __init__(self, image_mode: str | None = "RGB", **kwargs: Any) -> None:
        super().__init__(image_mode, **kwargs)

    def get_max_bytes(self) -> int:
        """Downloads above this are cut off."""
        return self.policy.image_bytes

    def load_bytes(self, data: bytes) -> Any:
        """The decoded picture with the bytes it came in.

        Raises:
            VLLMValidationError: Too large, unreadable or cut short; the sentence says which.
        """
        most = self.policy.image_bytes
        if len(data) > most:
            raise VLLMValidationError(
                f"{self.where} has {len(data):,} bytes, this server accepts {most:,}; scale it "
                "down or compress it."
            )
        try:
            self._check_pixels(data)
            return MediaWithBytes(load_picture(data, self.where).image, data)
        except InvalidRequest as error:
            raise VLLMValidationError(str(error)) from None

    def load_base64(self, media_type: str, data: str) -> Any:
        """The same for the body of a data URL."""
        import pybase64

        try:
            raw = pybase64.b64decode(data, validate=True)
        except ValueError:
            raise VLLMValidationError(
                "The image is not valid base64; send it as data:image/png;base64,..."
            ) from None
        return self.load_bytes(raw)

    def _check_pixels(self, data: bytes) -> None:
        """Reads the header only; what is no picture is named by `load_picture`."""
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs: our own limit is the one that counts
                width, height = Image.open(io.BytesIO(data)).size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return
        if width * height > self.policy.image_pixels:
            raise InvalidRequest(
                f"{self.where} has {width} x {height} pixels, this server accepts "
                f"{self.policy.image_pixels:,}; scale it down first."
            )


class Pictures(MediaConnector):
    """Fetches pictures from data URLs, allowed domains and below the allowed folder."""

    policy: Policy

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """One picture, blocking."""
        self._check(image_url)
        return self.load_from_url(image_url, self._io())

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """One picture.

        Raises:
            VLLMValidationError: Not allowed, unreadable or above a limit.
            VLLMUnprocessableEntityError: It could not be fetched.
        """
        import aiohttp

        self._check(image_url)
        timeout: Any = int(os.environ.get("VLLM_IMAGE_FETCH_TIMEOUT", "5"))
        reader = self._io()
        if image_url[:4].lower() == "http":
            reader.where = f"The image at {image_url[:200]} (redirects are not followed)"
        try:
            return await self.load_from_url_async(image_url, reader, fetch_timeout=timeout)
        except HTTPResponseSizeExceededError as error:
            raise VLLMValidationError(
                f"{reader.where} has more than the {error.max_bytes:,} bytes this server accepts; "
                "scale it down or compress it."
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise VLLMUnprocessableEntityError(
                f"{reader.where} could not be fetched ({type(error).__name__}); send it as a data "
                "URL."
            ) from None

    def _io(self) -> PictureIO:
        reader = PictureIO()
        reader.policy = self.policy
        return reader

    def _check(self, url: str) -> None:
        """Refuse what the operator does not allow, before anything is opened."""
        scheme = url[:5].lower() if url[:5].lower() == "data:" else urlsplit(url).scheme.lower()
        if scheme == "data:":
            head, comma, _ = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise VLLMValidationError(
                    "The image is not a base64 data URL (data:image/png;base64,...)."
                )
        elif scheme in ("http", "https"):
            self._check_domain(urlsplit(url).hostname or "")
        elif scheme == "file":
            self._check_file(url)
        else:
            raise VLLMValidationError(
                f"The image URL {url[:80]!r} must start with data:, https://, http:// or file://."
            )

    def _check_domain(self, host: str) -> None:
        if host not in self.policy.domains:
            allowed = ", ".join(self.policy.domains) or "none; send the image as a data URL"
            raise VLLMValidationError(
                f"Images from {host!r} are not allowed on this server; allowed domains: {allowed}."
            )

    def _check_file(self, url: str) -> None:
        if self.policy.folder is None:
            raise VLLMValidationError(
                "Local files are not allowed on this server; send the image as a data URL."
            )
        parts = urlsplit(url)
        path = Path(unquote(parts.netloc + parts.path))
        try:
            resolved = path.resolve()
        except (OSError, ValueError):
            raise VLLMValidationError("The image's path cannot be read.") from None
        if Path(self.policy.folder).resolve() not in resolved.parents:
            raise VLLMValidationError(
                "The image's path lies outside the folder this server may read; send it as a data "
                "URL."
            )
        if not resolved.is_file():
            raise VLLMValidationError(f"No such image file: {path.name}.")


def install(policy: Policy) -> Pictures:
    """Register our connector as the one vLLM uses; returns one for our own use."""
    connector = type("PolicyPictures", (Pictures,), {"policy": policy})
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(connector)
    os.environ["VLLM_MEDIA_CONNECTOR"] = NAME
    os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"  # they could leave the allowed domains
    return connector(
        allowed_local_media_path=policy.folder or "",
        allowed_media_domains=list(policy.domains) or [NOWHERE],
    )


class BodyLimit:
    """ASGI middleware: a request's body may not be longer than its pictures could be.

    Args:
        app: What is guarded.
        most: Bytes.
    """

    def __init__(self, app: Any, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 413 as soon as it is known to be too long."""
        from fastapi import HTTPException

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The request is longer than the {self._most:,} bytes this server accepts; "
                    "send fewer or smaller images.",
                )
            return message

        await self._app(scope, counted, send)
