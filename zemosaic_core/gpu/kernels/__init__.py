"""CUDA sources, wrapped by memoised loaders; the text also compiles for the host."""
