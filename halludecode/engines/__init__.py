"""Engines run plans; each states the needs it provides.

`halludecode list` shows which strategies an engine can serve.
"""

HF_PROVIDES = frozenset(
    {
        *("rows", "main prompt", "images", "pixels", "features", "mask", "activations", "whole"),
        *(
            "add_scores",
            "scale_scores",
            "mask",
            "scale_weights",
            "scale_heads",
            "mass",
            "scores",
            "weights",
            "head_outputs",
        ),
        *("token_mask", "at_first_token", "key", "steer", "early", "vision", "raster", "search"),
    }
)
VLLM_PROVIDES = frozenset(
    {
        *("rows", "main prompt", "images", "pixels", "features", "activations", "whole"),
        *(
            "add_scores",
            "scale_scores",
            "mask",
            "scale_weights",
            "scale_heads",
            "mass",
            "scores",
            "weights",
            "head_outputs",
        ),
        *("token_mask", "at_first_token", "key", "steer", "early", "vision", "raster"),
    }
)
ENGINES = {"hf": HF_PROVIDES, "vllm": VLLM_PROVIDES}
# What can be looked at where, beside strategies: shown by `halludecode doctor`.
SHOWS = {
    "hf": ("explain", "heads: ablation, mass, vhd", "sinks"),
    "vllm": ("explain", "heads: mass, vhd (first token)", "sinks"),
}
