"""Two GPUs that are this computer's CPU, so that what is written for GPUs runs without one.

    python -m tests.simulated_gpu -m pytest --device cuda
    python -m tests.simulated_gpu -m benchmarks.mnist --device cuda

To torch and to whoever uses it they are CUDA devices: tensors on them and on the CPU do not mix,
streams, events and graphs work, and a graph freezes what a CUDA graph freezes. `device.cpp` has the
memory and torch's operations, which run the CPU's kernels on it, `runtime.py` what torch keeps in
Python, and the package's own kernels are run as the tests in `tests/cuda_without_gpu` run them.

Not simulated: time (everything is done when a call returns), nccl, Triton, and the roundings of
torch's CUDA kernels but for the operations of optimizers, which are in `formulas.h`.
"""
