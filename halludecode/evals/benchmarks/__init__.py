"""One object a benchmark, found by file name."""
