"""One package per paper; each runs as a module and writes a results file."""
