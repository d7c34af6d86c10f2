"""A simulated GPU, in Python: tensors that say `cuda:0`, compute on the CPU, and keep CUDA's rules.

Only the device is simulated. The numbers are real, so what runs on a GPU runs here. What CUDA refuses is refused, and
what is slow or wrong on a GPU is seen:

- tensors of two devices in one operation raise (`operations.py`);
- every wait of the host for a GPU is counted, with the line that is to blame (`operations.py`, `blame.py`);
- every operation that is not a view is counted as a kernel (`operations.py`);
- memory is accounted for each GPU as torch's allocator does it, with a limit and real shortages (`memory.py`);
- backward passes run in a thread of their own, which does not see the caller's thread-local state (`machine.py`);
- CUDA graphs are recorded and replayed (`graphs.py`);
- torch.cuda is that of a machine with so many GPUs (`surface.py`).

It cannot see races between streams, which kernel CUDA takes, how that rounds, fragmentation, speed, NCCL or
bitsandbytes.

Example:
    >>> with Gpu(devices=2, limit=2**30) as gpu:
    ...     x = torch.ones(3, device="cuda:1")
    ...     (x @ x).item()
    3.0
    >>> gpu.waits
    Counter({'a number read by the host (.item(), bool, float, int) @ <doctest>:3': 1})
"""

from tests.simgpu.machine import Gpu

__all__ = ["Gpu"]
