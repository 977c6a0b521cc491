"""Engines run plans; each states the needs it provides.

`halludecode list` shows which strategies an engine can serve.
"""

HF_PROVIDES = frozenset(
    {
        *("rows", "main prompt", "images", "pixels", "features", "hide", "looks", "whole"),
        *("add", "scale", "hide", "gain", "heads", "mass", "scores", "weights", "out"),
        *("flag", "once", "key", "steer", "early", "vision", "raster", "search"),
    }
)
VLLM_PROVIDES = frozenset(
    {
        *("rows", "main prompt", "images", "pixels", "features", "looks", "whole"),
        *("add", "scale", "hide", "gain", "heads", "mass", "scores", "weights", "out"),
        *("flag", "once", "key", "steer", "early", "vision", "raster"),
    }
)
ENGINES = {"hf": HF_PROVIDES, "vllm": VLLM_PROVIDES}
