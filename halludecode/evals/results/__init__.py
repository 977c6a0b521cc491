"""From run folders to numbers: metrics, paired differences, controls."""
