"""Engines run plans; each states the needs it provides, see `halludecode.core.needs`.

`halludecode list` shows which strategies an engine can serve.
"""

VLLM_PROVIDES = frozenset(
    {
        *(
            "rows",
            "main prompt",
            "rewords",
            "more pictures",
            "in turn",
            "images",
            "pixels",
            "tower",
            "features",
            "activations",
            "whole",
        ),
        *("square", "open", "reposition"),
        *("add_scores", "scale_scores", "mask", "scale_weights", "scale_heads"),
        "average_values",
        *("mass", "scores", "weights", "head_outputs", "token_mask", "at_first_token", "key"),
        *("received", "paid", "keys_at_first_token", "tally", "confidence"),
        *("steer", "early", "logits", "image_features", "branch_off", "vision", "raster"),
        *("tower states", "decode"),
    }
)
HF_PROVIDES = VLLM_PROVIDES | {"masked rows", "search"}
PROVIDES = {"hf": HF_PROVIDES, "vllm": VLLM_PROVIDES}  # of the engines that load a model here
ENGINES = (
    *PROVIDES,
    "server",
)  # what `halludecode.load` knows; a server provides what its own does
# What can be looked at where, beside strategies: shown by `halludecode doctor`.
SHOWS = {
    "hf": ("explain", "heads: ablation, mass, vhd", "sinks"),
    "vllm": ("explain", "heads: mass, vhd (first token)", "sinks"),
}
