"""The command line: thin verbs over the library."""

import os

# The BLAS of numpy and scipy counts its threads once, when it is loaded, by OMP_NUM_THREADS, and no stage can
# take that back: its sums would be rounded differently where a stage gives PyTorch one thread. Our matrices
# there are small, more threads gain nothing. Worker processes inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
