"""HallusionBench: the same question about an original and an edited figure, or about none."""
