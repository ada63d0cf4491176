"""The only room that names CuPy: the seam to a card, the CUDA sources, and the bodies that run on it.

Nothing here decides whether the card is used; `zemosaic_gpu_policy` does, with the nouns of `terms` and the facts
of `probe`, and writes every step down with `recorder`.

====================  ==============================================================================================
``device``            the seam: `Device`, CuPy behind it, errors reduced to `GpuFault`; tests install another card
``probe``             is there a card that runs a kernel? stage by stage, also as a process of its own
``terms``             reasons, budget, decision, report; ``recorder``: records and sums; ``parity``: card against CPU
``budget``            how much of a card may be used, and whether and in which chunks it is worth it; pure
``ladder``            chunk by chunk, smaller ones after an error, the processor last; ``experience``: what a run learns
``launch``            one stream with uploads, launches and downloads; no queued work outlives an error
``kernels/*.cu``      the CUDA text, for the card (NVRTC) and for the tests (host compiler)
``coadd``             the co-add of frames or tiles; ``reader`` reads its windows ahead
``combine``           rejection and combination of samples on the card; ``stack``: of images in memory
``filters``           local outliers, blur, stretch, percentiles
====================  ==============================================================================================

Dropped: sampling into a dense stack (a mosaic of many tiles is mostly empty), hardware texture filtering (eight
bits of fraction are too few for photometry), sorting with library calls (an order of magnitude more traffic), and
fused multiply-add (the card would no longer agree with the CPU bit by bit).
"""
