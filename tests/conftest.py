"""Settings for all tests."""

import os

# pytest-xdist runs several processes: one thread each. Read when torch is imported, also in subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"
