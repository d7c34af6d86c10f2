"""The memory of one GPU, as torch's caching allocator gives it out.

What is allocated is rounded to 512 bytes. What is freed is kept for later allocations of the same place: a stream, or
the pool of a graph. If the GPU is full, all that is kept is given back to it first; only then it is a shortage.
Pieces of freed memory fit together without loss, so this allocator has no fragmentation.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from weakref import WeakValueDictionary

import torch

ROUND = 512
# Each storage that lies on a GPU, by its address.
_blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()


def block_at(address: int) -> Block | None:
    """Return the block at an address; None where there is none."""
    return _blocks.get(address)


class Block:
    """The memory of one storage, until the last tensor of it is gone."""

    def __init__(self, memory: Memory, place: Hashable, size: int, storage: torch.UntypedStorage) -> None:
        self.memory, self.place, self.size = memory, place, size
        self.storage = storage  # so that its address is given to no other while this block is there

    def __del__(self) -> None:
        self.memory.free(self)


class Pool:
    """The private pool of graphs; what it holds is theirs while one of them is there."""

    def __init__(self) -> None:
        self.graphs = 0


class Memory:
    """One GPU's memory.

    Args:
        index: the GPU's number.
        limit: its bytes.

    Attributes:
        capturing: captures that are under way, as the allocator believes: meanwhile it gives nothing back.
        allocations: how often memory was asked for.
        failures: how often it was refused.
        fail_in: allocations until one is refused whatever is free; None: none is.
    """

    def __init__(self, index: int, limit: int) -> None:
        self.index, self.limit = index, limit
        self.used: Counter[Hashable] = Counter()
        self.kept: Counter[Hashable] = Counter()
        self.capturing: list[Pool] = []
        self.peak = self.reserved_peak = 0
        self.allocations = self.failures = 0
        self.fail_in: int | None = None
        self._lock = threading.RLock()

    @property
    def allocated(self) -> int:
        """Bytes of tensors that are there."""
        return sum(self.used.values())

    @property
    def reserved(self) -> int:
        """Bytes taken from the GPU: those of tensors, and those kept for later ones."""
        return self.allocated + sum(self.kept.values())

    def hold(self, storage: torch.UntypedStorage, place: Hashable) -> Block | None:
        """Return the block of a storage, a new one where it has none; None where it has no bytes.

        Raises:
            torch.OutOfMemoryError: the GPU is full.
        """
        address = storage.data_ptr()
        if not address:
            return None
        found = _blocks.get(address)
        if found is None:
            with self._lock:
                size = -(-storage.nbytes() // ROUND) * ROUND
                self._take(size, place)
                found = _blocks[address] = Block(self, place, size, storage)
        return found

    def _take(self, size: int, place: Hashable) -> None:
        self.allocations += 1
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                raise self._shortage(size)
        more = size - min(size, self.kept[place])
        if self.reserved + more > self.limit:
            self.empty_cache()
            more = size - min(size, self.kept[place])
        if self.reserved + more > self.limit:
            raise self._shortage(size)
        self.kept[place] -= size - more
        self.used[place] += size
        self.peak = max(self.peak, self.allocated)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def free(self, block: Block) -> None:
        """Take a block back, and keep its memory."""
        with self._lock:
            self.used[block.place] -= block.size
            self.kept[block.place] += block.size

    def empty_cache(self) -> None:
        """Give what is kept back to the GPU, unless a capture is under way."""
        if self.capturing:
            return
        for place in list(self.kept):
            if not (isinstance(place, Pool) and place.graphs):
                del self.kept[place]

    def reset_peak(self) -> None:
        """Begin the peaks anew."""
        self.peak, self.reserved_peak = self.allocated, self.reserved

    def _shortage(self, size: int) -> torch.OutOfMemoryError:
        self.failures += 1
        free = max(0, self.limit - self.reserved)
        return torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {_text(size)}. GPU {self.index} has a total capacity of "
            f"{_text(self.limit)} of which {_text(free)} is free. Of the allocated memory {_text(self.allocated)} "
            f"is allocated by PyTorch, and {_text(self.reserved - self.allocated)} is reserved by PyTorch but "
            "unallocated."
        )


def _text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.2f} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1024
    return f"{size:.2f} GiB"
