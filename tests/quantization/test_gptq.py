"""GPTQ against least squares in numpy, column by column, and grids against all values that they have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergemoe.quantization.blocks import BLOCKS
from mergemoe.quantization.gptq import gptq
from mergemoe.quantization.grids import SHRINKS, fitted_grid, rounded_blocks


def drawn(rows, columns, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64),
        torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixed,
    )


def by_least_squares(w, x, bits, group, damping):
    """The same by numpy: after each column, the rest of every row is the least squares for what is left."""
    added = np.sqrt(damping * (x**2).sum(0).mean()) * np.eye(x.shape[1])
    inputs = np.vstack([x, added])  # the damping as more tokens
    w, target = w.copy(), inputs @ w.T
    for start in range(0, w.shape[1], group):
        grid = fitted_grid(torch.from_numpy(w[:, start : start + group].copy()), bits)
        for i in range(start, start + group):
            w[:, i] = grid.nearest(torch.from_numpy(w[:, i].copy())).numpy()
            rest = target - inputs[:, : i + 1] @ w[:, : i + 1].T
            w[:, i + 1 :] = np.linalg.lstsq(inputs[:, i + 1 :], rest, rcond=None)[0].T
    return w


@pytest.mark.parametrize(("bits", "group"), [(2, 4), (3, 8), (4, 16), (8, 8)])
def test_each_column_is_followed_by_the_least_squares_of_the_others(bits, group):
    w, x = drawn(5, 16, 40)
    found, before, grid = gptq(w, x.T @ x, bits, group, 0.01)
    expected = by_least_squares(w.numpy(), x.numpy(), bits, group, 0.01)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert torch.equal(grid.nearest(before.view(5, -1, group)).view_as(found), found)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_output_is_nearer_than_with_the_nearest_values(bits):
    w, x = drawn(32, 64, 400)
    nearest = torch.cat([fitted_grid(part, bits).nearest(part) for part in w.split(16, 1)], 1)
    errors = [((made - w) @ x.T).square().sum() for made in (gptq(w, x.T @ x, bits, 16, 0.01).weights, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_columns_without_input_are_rounded_to_the_nearest_value():
    w, x = drawn(4, 16, 40)
    nearest = torch.cat([fitted_grid(part, 4).nearest(part) for part in w.split(8, 1)], 1)
    assert torch.equal(gptq(w, torch.zeros(16, 16), 4, 8, 0.01).weights, nearest)
    x[:, 8:] = 0
    assert torch.equal(gptq(w, x.T @ x, 4, 8, 0.01).weights[:, 8:], nearest[:, 8:])


@settings(max_examples=60)
@given(
    bits=st.integers(2, 8),
    rows=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8), min_size=1, max_size=4),
)
def test_a_grid_has_so_many_values_with_0_among_them_and_takes_the_nearest(bits, rows):
    w = torch.tensor(rows, dtype=torch.float64)
    grid = fitted_grid(w, bits)
    values = (torch.arange(2**bits) - grid.zero[:, None]) * grid.scale[:, None]
    assert bool((values == 0).any(1).all())
    found, distance = grid.nearest(w), (values[:, None] - w[..., None]).abs().amin(-1)
    torch.testing.assert_close((found - w).abs(), distance)
    assert torch.equal(grid.scale, grid.scale.half().double())


def test_a_grid_is_the_best_of_all_that_are_tried():
    w = drawn(6, 32, 1)[0]
    steps, least = 7, torch.full((6,), torch.inf, dtype=torch.float64)
    for shrink in SHRINKS:
        scale = (shrink * (w.amax(1) - w.amin(1)) / steps).half().double()
        values = (torch.arange(8) - (-shrink * w.amin(1) / scale).round()[:, None]) * scale[:, None]
        least = least.minimum((values[:, None] - w[..., None]).square().amin(-1).sum(1))
    torch.testing.assert_close((fitted_grid(w, 3).nearest(w) - w).square().sum(1), least)


@pytest.mark.parametrize("format", BLOCKS)
def test_rounded_blocks_are_stable_and_near(format):
    w = drawn(3, 64, 1)[0].float().view(1, 3, 64)
    found = rounded_blocks(w, format)
    assert found.shape == w.shape and found.dtype == torch.float32
    torch.testing.assert_close(rounded_blocks(found, format), found, rtol=1e-2, atol=1e-3)
    bits = int(format[1])
    assert (found - w).abs().max() < 2.2 * w.abs().max() / 2**bits
