"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr."""

import os

# Each thread of OpenBLAS spins for a while once numpy is imported: a quarter of a short command's
# CPU, and nothing here multiplies matrices. What the user says of it holds, and JupyterLab, where
# people may well multiply some, is started without it.
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
IS_BLAS_GIVEN = BLAS_THREADS in os.environ
os.environ.setdefault(BLAS_THREADS, "1")
