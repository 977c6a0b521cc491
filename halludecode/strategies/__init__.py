"""One file per paper, found by file name: adding a file is the whole registration."""
