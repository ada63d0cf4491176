"""The only place that names CuPy: device seam, kernels, GPU bodies of the engine."""
