"""Counter-based random numbers against whole-number arithmetic in plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rgflow_core.noise import permutation, stream, uniform

GAMMA, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = 2**64


def mix(x):
    """SplitMix64's finaliser on an unsigned number."""
    x = (x ^ (x >> 30)) * MIX1 % WORD
    x = (x ^ (x >> 27)) * MIX2 % WORD
    return x ^ (x >> 31)


def key(*parts):
    state = 0
    for part in parts:
        state = mix((state * MIX1 + GAMMA + part) % WORD)
    return state


def uniforms(stream, count):
    return [(mix((stream + k * GAMMA) % WORD) >> 40) / 2**24 for k in range(1, count + 1)]


def test_splitmix64_is_the_published_one():
    # The first outputs of the reference implementation for the seed 1234567.
    outputs = [mix((1234567 + k * GAMMA) % WORD) for k in range(1, 4)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def numbers(low, high):
    return st.lists(st.integers(low, high), min_size=1, max_size=4)


@settings(max_examples=30)
@given(numbers(0, 2**31 - 1), numbers(0, 2**40))
def test_keys(parts, index):
    """Of whole numbers, and of tensors of them."""
    tensor = torch.tensor(index)
    for more in ([], [tensor]):
        keys = stream(*parts, *more, index=tensor)
        wanted = [key(*parts, *[i] * len(more), i) for i in index]
        assert [k % WORD for k in keys.tolist()] == wanted


@settings(max_examples=30)
@given(numbers(-(2**63), 2**63 - 1))
def test_uniform_numbers(streams):
    drawn = uniform(torch.tensor(streams), 9, torch.float64)
    assert drawn.tolist() == [uniforms(s % WORD, 9) for s in streams]
    assert torch.equal(uniform(torch.tensor(streams), 9).double(), drawn)


def test_neighbouring_streams_are_uniform():
    for parts in ((1, 0), (1, 1), (2, 0), (1, 0, 1)):
        numbers = uniform(stream(*parts, index=torch.arange(3000)), 30, torch.float64)
        assert stats.kstest(numbers[:, 0], "uniform").pvalue > 1e-3
        for pairs in (numbers[:, 1:] - numbers[:, :-1], numbers[1:] - numbers[:-1]):
            assert stats.kstest(pairs.flatten()[::7], stats.triang(0.5, -1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_permutation(size):
    order = permutation(size, 3, 0)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(size))
    assert order.tolist() == sorted(range(size), key=lambda i: (key(3, 0, i) + 2**63) % WORD)
