"""Random numbers that are a pure function of what they are for.

SplitMix64 (Steele, Lea and Flood 2014) is a counter put through a mixing function, so that number
k of stream (seed, ...) can be had without the ones before it: the noise of image i in epoch e is
the same on any device, in any batch, on any of several processes, before and after a resume.
"""

import torch
from torch import Tensor

# 64-bit constants as signed whole numbers, which is what torch has.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64
HALF_STEP = 2.0**-25  # half a step of `uniform`, for those who must not be given 0


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser; x int64 holds unsigned bits, products wrap around."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX2
    return x ^ ((x >> 31) & (2**33 - 1))


def stream(*parts: int | Tensor, index: Tensor) -> Tensor:
    """One stream key (N,) int64 for each entry of ``index``; ``parts`` can be tensors like it."""
    state = torch.zeros_like(index)
    for part in parts:
        state = _mix(state * _MIX1 + _GAMMA + part)
    return _mix(state * _MIX1 + _GAMMA + index)


def uniform(keys: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, shape (N, count), for N stream keys."""
    counters = torch.arange(1, count + 1, device=keys.device) * _GAMMA
    bits = _mix(keys[:, None] + counters) >> 40 & (2**24 - 1)
    return bits.to(dtype) * 2.0**-24


def permutation(size: int, *parts: int) -> Tensor:
    """A random order of 0 ... size-1, int64, a function of ``parts``."""
    return stream(*parts, index=torch.arange(size)).argsort(stable=True)
