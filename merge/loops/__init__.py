"""The arithmetic of merges as loops over parameters, compiled by numba: today's results in a fraction of the time.

merge/arithmetic.py and merge/select.py define what is computed, on tensors; the loops do the same bit
for bit, for a CPU, in one walk over a slice. Weights are read as they are stored, in 16 or 32 bits, and the result is
written so. A block of parameters goes through all steps before the next one: what lies between the steps never leaves
the cache.

Values are float32. Arithmetic in 16 bits is float32's, rounded after each step as torch rounds it; `kind` says to what:
EXACT, BFLOAT16 or FLOAT16 (tables.py). Sources: trimming, election and disjoint mean, Yadav et al. 2023 (TIES);
slack, Tao et al. 2024; the rest as merge/arithmetic.py lists it. Loops take no memory and call nothing of numba's, so
that a process that merges need not import numba (machine_code.py).
"""
