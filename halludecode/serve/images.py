"""How the server gets pictures: from where the operator allows, within limits, decoded as we do.

vLLM asks a registered connector for every picture of every endpoint; ours is registered in its
place by `install`, so that plain requests keep to the same rules. A picture of few bytes may have
many pixels, so these are counted before anything is decoded: per picture, per request, and of all
pictures that the server holds decoded at a time; two are decoded side by side.
"""

from __future__ import annotations

import asyncio
import io
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vllm.connections import HTTPResponseSizeExceededError
from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.media.connector import global_thread_pool, merge_media_io_kwargs
from vllm.multimodal.media.image import ImageMediaIO

from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.images import load_picture
from halludecode.serve.policy import NOWHERE, Busy, Policy

NAME = "halludecode"
Media = dict[str, dict[str, Any]]  # vLLM's media_io_kwargs: options by modality
DECODED_AT_ONCE = 2
REQUESTS_HELD = 4  # as many of the largest requests may have their pictures decoded at a time
WAIT = 30.0  # seconds for their room


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
        self.pixels(data)
        try:
            ground = self.rgba_background_color  # white, unless `media_io_kwargs` say otherwise
            return MediaWithBytes(load_picture(data, self.where, ground).image, data)
        except InvalidRequest as error:
            raise VLLMValidationError(str(error)) from None

    def load_file(self, filepath: Path) -> Any:
        """The same for a file, whose size was looked at before."""
        return self.load_bytes(filepath.read_bytes())

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

    def pixels(self, data: bytes) -> int:
        """Pixels by the header alone; 0 of what is no picture, which is named when it is decoded.

        Raises:
            VLLMValidationError: More bytes or pixels than the operator allows.
        """
        from PIL import Image

        policy = self.policy
        if len(data) > policy.image_bytes:
            raise VLLMValidationError(
                f"{self.where} has {len(data):,} bytes, this server accepts "
                f"{policy.image_bytes:,}; scale it down or compress it."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs: our own limit is the one that counts
                width, height = Image.open(io.BytesIO(data)).size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return 0
        if width * height > policy.image_pixels:
            raise VLLMValidationError(
                f"{self.where} has {width} x {height} pixels, this server accepts "
                f"{policy.image_pixels:,}; scale it down first."
            )
        return width * height


class _Undecoded(PictureIO):
    """Gives a picture's bytes as they came."""

    def load_bytes(self, data: bytes) -> Any:
        """The same bytes."""
        return data


class PixelRoom:
    """Room for decoded pictures: of one request it is full, of a server it becomes free again.

    Args:
        most: Pixels.
    """

    def __init__(self, most: int) -> None:
        self.most = self.left = most
        self._freed = asyncio.Event()

    def take(self, pixels: int) -> bool:
        """Take room if there is enough."""
        enough = pixels <= self.left
        self.left -= pixels if enough else 0
        return enough

    async def wait_for(self, pixels: int) -> None:
        """Take room, once others have given it back.

        Raises:
            Busy: That takes too long.
        """
        try:
            async with asyncio.timeout(WAIT):
                while not self.take(pixels):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise Busy(
                "The server is decoding as many pictures as it has room for; try again later."
            ) from None

    def give(self, pixels: int) -> None:
        """Give room back."""
        self.left += pixels
        self._freed.set()


# Of the HTTP request that is being answered; `limits.RequestLimits` puts it there.
ROOM: ContextVar[PixelRoom | None] = ContextVar("halludecode_pixels", default=None)


class Pictures(MediaConnector):
    """Fetches pictures from data URLs, allowed domains and below the allowed folder."""

    policy: Policy
    trusting: bool = False
    room: PixelRoom  # of the server
    decoding: asyncio.Semaphore

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """One picture, blocking."""
        self._check(image_url)
        return self.load_from_url(image_url, self._io())

    async def fetch_image_async(
        self, image_url: str, *, image_mode: str | None = "RGB", media: Media | None = None
    ) -> Any:
        """One picture.

        Args:
            image_url: Data, http(s) or file URL.
            image_mode: Pictures are RGB in any case.
            media: The request's own ``media_io_kwargs``, where vLLM has not joined them yet.

        Raises:
            VLLMValidationError: Not allowed, unreadable or above a limit.
            VLLMUnprocessableEntityError: It could not be fetched in time.
            Busy: There is no room to decode it.
        """
        self._check(image_url)
        reader = self._io(media)
        if image_url[:4].lower() == "http":
            reader.where = f"The image at {image_url[:200]} (redirects are not followed)"
        data = await self._data(image_url, reader)
        pixels, own, loop = reader.pixels(data), ROOM.get(), asyncio.get_running_loop()
        if own is not None and not own.take(pixels):
            raise VLLMValidationError(
                f"The request's images have more than the {own.most:,} pixels together that this "
                "server accepts; scale them down or send fewer."
            )
        await self.room.wait_for(pixels)

        def done() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.room.give, pixels)

        try:
            async with self.decoding:
                decoded = await loop.run_in_executor(global_thread_pool, reader.load_bytes, data)
        except BaseException:
            done()
            raise
        weakref.finalize(decoded.media, done)  # whoever holds it, and for however long
        return decoded

    async def _data(self, url: str, reader: PictureIO) -> bytes:
        """The bytes of a picture; a host that sends them slowly is not waited for."""
        import aiohttp

        seconds, where = self.policy.fetch_seconds, reader.where
        undecoded = _Undecoded()
        undecoded.policy, undecoded.where = reader.policy, where
        try:
            async with asyncio.timeout(seconds if url[:4].lower() == "http" else None):
                timeout: Any = seconds
                return await self.load_from_url_async(url, undecoded, fetch_timeout=timeout)
        except HTTPResponseSizeExceededError as error:
            raise VLLMValidationError(
                f"{where} has more than the {error.max_bytes:,} bytes this server accepts; scale "
                "it down or compress it."
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            why = f"not within {seconds:g} s" if late else type(error).__name__
            raise VLLMUnprocessableEntityError(
                f"{where} could not be fetched ({why}); send it as a data URL."
            ) from None
        except OSError:
            raise VLLMValidationError("The image's file cannot be read.") from None

    @asynccontextmanager
    async def held(
        self, urls: Sequence[str], media: Media | None = None
    ) -> AsyncIterator[list[Any]]:
        """The decoded pictures of a request, for as long as its rows are made.

        Args:
            urls: Of the pictures, in order.
            media: The request's own ``media_io_kwargs``, which the operator must trust.
        """
        validate_request_mm_kwargs(
            mm_processor_kwargs=None, media_io_kwargs=media, trust_request_mm_kwargs=self.trusting
        )
        # One after the other: those that wait for room do not hold the room of others.
        yield [(await self.fetch_image_async(url, media=media)).media for url in urls]

    def _io(self, media: Media | None = None) -> PictureIO:
        """A reader as ``media_io_kwargs`` want it.

        Raises:
            VLLMValidationError: A name in them is not known, or its value is no colour.
        """
        merged = merge_media_io_kwargs(self.media_io_kwargs, media) or {}
        wanted = dict(merged.get("image") or {})
        unread = sorted(wanted.keys() - {"rgba_background_color", "image_mode"})
        if unread or wanted.pop("image_mode", "RGB") != "RGB":
            name = unread[0] if unread else "image_mode other than 'RGB'"
            raise VLLMValidationError(
                f"media_io_kwargs: {name!r} is not served for images; rgba_background_color is."
            )
        try:
            reader = PictureIO(**wanted)
        except ValueError as error:
            raise VLLMValidationError(f"media_io_kwargs: {error}") from None
        reader.policy = self.policy
        return reader

    def _check(self, url: str) -> None:
        """Refuse what the operator does not allow, before anything is opened."""
        try:
            scheme = "data:" if url[:5].lower() == "data:" else urlsplit(url).scheme.lower()
            host = "" if scheme == "data:" else urlsplit(url).hostname or ""
        except ValueError as error:
            raise VLLMValidationError(f"The image URL cannot be read: {error}.") from None
        if scheme == "data:":
            head, comma, _ = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise VLLMValidationError(
                    "The image is not a base64 data URL (data:image/png;base64,...)."
                )
        elif scheme in ("http", "https"):
            self._check_domain(host)
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
        try:
            size = resolved.stat().st_size if resolved.is_file() else None
        except OSError:  # a name that is too long, for one
            size = None
        if size is None:
            raise VLLMValidationError(f"No such image file: {path.name[:80]}.")
        if size > self.policy.image_bytes:
            raise VLLMValidationError(
                f"The image has {size:,} bytes, this server accepts {self.policy.image_bytes:,}; "
                "scale it down or compress it."
            )


def install(policy: Policy, media: Media | None = None, *, trusting: bool = False) -> Pictures:
    """Register our connector as the one vLLM uses; returns one for our own use.

    Args:
        policy: The operator's choices.
        media: Of vLLM's option ``--media-io-kwargs``.
        trusting: Whether requests may bring their own (``--trust-request-mm-kwargs``).
    """
    shared = {
        "policy": policy,
        "trusting": trusting,
        "room": PixelRoom(REQUESTS_HELD * policy.request_pixels),
        "decoding": asyncio.Semaphore(DECODED_AT_ONCE),
    }
    connector = type("PolicyPictures", (Pictures,), shared)
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(connector)
    os.environ["VLLM_MEDIA_CONNECTOR"] = NAME
    os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"  # they could leave the allowed domains
    return connector(
        dict(media or {}),
        allowed_local_media_path=policy.folder or "",
        allowed_media_domains=list(policy.domains) or [NOWHERE],
    )
