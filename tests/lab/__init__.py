"""Tools, not tests: mutations, the grader of exercises, layer-by-layer comparison, the benchmark."""
