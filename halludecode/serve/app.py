"""Starting the server: vLLM's own application over its asynchronous engine, with our stand-ins."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidRequest
from halludecode.engines.api import ExtraRows
from halludecode.engines.vllm.compat.vllm_api import ENGINE, SERVER, moved
from halludecode.engines.vllm.frontend.loading import OURS, check_executor, import_vllm, settings
from halludecode.serve.policy import NOWHERE, Policy

# Options of vLLM that would make a second front end or another kind of server.
SINGLE = {"api_server_count": (None, 1), "headless": (False,), "grpc": (False,)}


def arguments(policy: Policy, options: Sequence[str]) -> Any:
    """VLLM's arguments for a policy and the user's own vLLM options.

    Raises:
        InvalidRequest: An option vLLM does not know, refuses, or that is ours to set.
        MissingExtra: vLLM is not installed, or is of another version.
    """
    import_vllm((ENGINE, SERVER))
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    moved("cli_env_setup")()
    parser = moved("make_arg_parser")(FlexibleArgumentParser())
    parser.error = _refuse  # type: ignore[method-assign]
    _check_given(options)
    proposed, fixed = settings()
    parser.set_defaults(**proposed, limit_mm_per_prompt={"image": policy.images})
    args = parser.parse_args(list(options))
    for name, value in {
        **fixed,
        "mm_processor_cache_gb": 0,
        "mm_device_do_normalize": False,
    }.items():
        setattr(args, name, value)
    _check_parsed(args)
    check_executor(args.distributed_executor_backend)
    args.allowed_media_domains = list(policy.domains) or [NOWHERE]
    args.allowed_local_media_path = policy.folder or ""
    try:
        moved("validate_parsed_serve_args")(args)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(str(error).removeprefix("Error: ")) from None
    return args


def run(
    model: str,
    policy: Policy,
    args: Any,
    artifacts: Path | None = None,
    extra_rows: ExtraRows = "on_demand",
) -> None:
    """Serve until stopped.

    Raises:
        InvalidModel: The model or vLLM cannot start.
        HalluDecodeError: A strategy of the policy cannot be served; the sentence says why.
    """
    import uvloop

    args.model = model
    args.served_model_name = [policy.name]
    args.extra_rows = extra_rows
    uvloop.run(_serve(model, policy, args, artifacts))


async def _serve(model: str, policy: Policy, args: Any, artifacts: Path | None) -> None:
    from vllm.entrypoints.launchers.launcher import setup_server

    signal.signal(signal.SIGTERM, _interrupted)  # until uvicorn's own handler stands
    try:
        _, sock = setup_server(args, reuse_port=False)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"Cannot listen at {args.host or '0.0.0.0'}:{args.port} ({error}); choose another "
            "--port."
        ) from None
    try:
        async with AsyncExitStack() as stack:
            stopped = await _start(model, policy, args, artifacts, stack, sock)
        await stopped
    finally:
        sock.close()


async def _start(
    model: str,
    policy: Policy,
    args: Any,
    artifacts: Path | None,
    stack: AsyncExitStack,
    sock: Any,
) -> asyncio.Task[Any]:
    """Start the engine, then the application; the task ends when the server does."""
    from halludecode.serve import chat_service, images, limits, response_fields
    from halludecode.serve.handler import ChatHandler

    engine = await _engine(model, args, artifacts, stack)
    if args.chat_template is not None:  # the operator's is for rows, too
        from vllm.renderers.chat_utils import load_chat_template

        engine.processor.chat_template = load_chat_template(args.chat_template)
    bridge: Any = engine.loaded.engine
    media = engine.loaded.vllm_config.model_config.multimodal_config.media_io_kwargs
    pictures = images.install(policy, media, trusting=args.trust_request_mm_kwargs)
    handler = ChatHandler(engine, bridge, policy, pictures)
    for text in dict.fromkeys((policy.default, *policy.aliases)):
        plan = await handler.plan(text)
        policy.check_rows(plan.canonical, len(plan.rows), 1)
    tasks = bridge.get_supported_tasks()
    app = await _application(chat_service.EngineClient(bridge.llm, handler), args, tasks)
    chat_service.install(app.state, handler)
    response_fields.install(app, handler)
    stack_of_app = NoRetryHeader(app.middleware_stack)
    limited = limits.RequestLimits(stack_of_app, policy)
    app.middleware_stack = limits.KeyGuard(limited, _keys(args))
    return await _listen(app, sock, args)


def _keys(args: Any) -> list[str]:
    """Keys that vLLM would take, of its option or its environment."""
    import vllm.envs as envs

    return [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]


class NoRetryHeader:
    """ASGI middleware: tells OpenAI's clients not to repeat what failed and would fail again."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Mark answers of status 500; 429 and 503 are worth another try."""

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                header = (b"x-should-retry", b"false")
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, marked)


async def _engine(model: str, args: Any, artifacts: Path | None, stack: AsyncExitStack) -> Any:
    """Our engine over vLLM's asynchronous one, which ends with the stack."""
    from halludecode.engines.vllm.engine import VLLMEngine
    from halludecode.engines.vllm.frontend.async_bridge import AsyncBridge

    loop = asyncio.get_running_loop()

    async def enter(source: str) -> AsyncBridge:
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

        from halludecode.engines.vllm.compat.startup_errors import starting

        args.model = source
        with starting(model):
            llm = await stack.enter_async_context(build_async_engine_client(args))
        return AsyncBridge(llm, loop, await llm.get_supported_tasks())

    def start(given: str, source: str, options: Any) -> AsyncBridge:
        return asyncio.run_coroutine_threadsafe(enter(source), loop).result()

    shared = {name: getattr(args, name) for name in ("revision", "trust_remote_code")}
    return await asyncio.to_thread(
        VLLMEngine,
        model,
        artifacts=artifacts,
        start=start,
        extra_rows=args.extra_rows,
        **{k: v for k, v in shared.items() if v},
    )


async def _application(client: Any, args: Any, tasks: Sequence[str]) -> Any:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    supported: Any = tuple(tasks)
    app = build_app(args, supported, client.model_config)
    await init_app_state(client, app.state, args, supported)
    return app


async def _listen(app: Any, sock: Any, args: Any) -> asyncio.Task[Any]:
    import vllm.envs as envs
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    from halludecode.serve.limits import END_SECONDS, TimedProtocol

    log_config = get_uvicorn_log_config(args)
    given = {"log_config": log_config} if log_config is not None else {}
    return await serve_http(
        app,
        sock=sock,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=END_SECONDS,
        http=TimedProtocol,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **given,
    )


def named(policy: Policy, args: Any) -> Policy:
    """The policy under the name the user gave the model."""
    return replace(policy, name=args.served_model_name[0]) if args.served_model_name else policy


def _check_given(options: Sequence[str]) -> None:
    for word in options:
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("--") and name in (*OURS, "allowed_media_domains"):
            cure = "--image-domain" if name == "allowed_media_domains" else "halludecode's own"
            raise InvalidRequest(f"{word.split('=')[0]} cannot be set; use {cure}.")


def _check_parsed(args: Any) -> None:
    if args.served_model_name is not None and len(args.served_model_name) > 1:
        raise InvalidRequest("Give one --served-model-name; more names come by --alias.")
    for name, fine in SINGLE.items():
        if getattr(args, name) not in fine:
            raise InvalidRequest(f"--{name.replace('_', '-')} is not served by this server.")
    if args.pipeline_parallel_size > 1:
        raise InvalidRequest(
            f"--pipeline-parallel-size {args.pipeline_parallel_size}: strategies need the whole "
            "model in one stage; use --tensor-parallel-size."
        )


def _refuse(message: str) -> Any:
    raise InvalidRequest(f"vLLM does not take these options: {message}")


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt
