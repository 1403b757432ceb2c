"""All cells of pictures, side by side: convolutions as plain matrix products.

Shapes: N pictures, S a picture's side, C and D channels of a layer's inputs and outputs.

The cells are in an order in which the four of a window are neighbours in memory. Where S is not
a power of two, SAME padding puts zeros beyond the edges of a level, and a cell that is cut by an
edge has another value than a whole one even if both are blank (see `Grid`).
"""

import math

import numpy as np

from support.backend import ops
from support.precision import mixed_matmul, to_compute_dtype

CELL = 4  # side, in pixels, of what the first two convolutions see at a time
# Kinds of uniform cells. Where the pictures' edges cut no cell: blank ones, and ones full of ink.
BLANK, FULL = 0, 1
# Where they do, all kinds are blank: whole (0), cut by one edge or by two (1 to 3), or beyond them.
OUTSIDE = 4


class Grid:
    """Where the cells of each level lie: those made by convolution `layer` have 2^(layer + 1)
    pixels a side, and pixels are the cells of layer -1.

    Args:
        side: S.
        layers: number of convolutions.
    """

    def __init__(self, side: int, layers: int):
        self.side, self.layers = side, layers
        self.padded = max(CELL, 2 ** math.ceil(math.log2(side)))
        self.is_cut = self.padded != side
        self.kind_count = OUTSIDE + 1 if self.is_cut else FULL + 1

    def width(self, layer: int) -> int:
        """Cells along a side that are not beyond the edges."""
        return -(-self.side // 2 ** (layer + 1))

    def padded_width(self, layer: int) -> int:
        """Cells along a side of the next power of two."""
        return max(1, self.padded // 2 ** (layer + 1))

    def kinds(self, layer: int, width: int) -> np.ndarray:
        """The kind of each of (width, width) blank cells, int32."""
        cell = min(2 ** (layer + 1), self.padded)
        starts = cell * np.arange(width)
        # 0 before the edge, 1 across it, 2 beyond it.
        place = 1 * (starts + cell > self.side) + (starts >= self.side)
        down, across = np.meshgrid(place, place, indexing="ij")
        return np.where((down == 2) | (across == 2), OUTSIDE, 2 * down + across).astype(np.int32)

    def kinds_within(self, layer: int, below: int) -> np.ndarray:
        """For each kind of uniform cell of `layer`, the kinds of the cells of layer `below` in it.

        Returns:
            int32 (kinds, F^2), row by row, F cells of `below` being as long as one of `layer`.
        """
        factor = 2 ** (layer - below)
        found = np.zeros((self.kind_count, factor * factor), np.int32)
        if not self.is_cut:
            found[FULL] = FULL
        else:
            width = self.width(layer) + 1  # one beyond the edges, too
            inner = self.kinds(below, factor * width).reshape(width, factor, width, factor)
            inner = inner.swapaxes(1, 2).reshape(width * width, -1)
            for kind, row in zip(self.kinds(layer, width).ravel(), inner, strict=True):
                found[kind] = row
        return found


def scaled(pixels, dtype):
    """0 to 255 to -1 to 1, as a product in `dtype` takes it."""
    # The same bits as v / 255 * 2 - 1: a factor of two changes no rounding.
    return to_compute_dtype(ops.cast(pixels, "float32") / 127.5 - 1, dtype)


def largest(windows):
    """(N, F, D) to (N, D)."""
    # Keras asks that there be a number at all, unless there is one to begin with.
    return ops.max(windows, axis=1, initial=-math.inf)


def flat_kernel(kernel, layer, from_one):
    """A convolution's kernel (2, 2, C, D) as a matrix.

    Args:
        kernel: the kernel.
        layer: its number. The first one acts on four windows at once.
        from_one: of a window only the first cell exists, the others being padding.
    """
    if layer == 0:
        return _cell_kernel(kernel)
    if from_one:
        return kernel[0, 0]
    return ops.reshape(kernel, (-1, kernel.shape[-1]))


def _cell_kernel(kernel):
    """The first convolution's kernel (2, 2, 1, C) as it acts on a cell: (16, 4 C).

    Of the cell's four windows each sees its own four pixels; zeros stand for the others.
    """
    windows = [
        ops.pad(kernel[:, :, 0], ((2 * y, 2 - 2 * y), (2 * x, 2 - 2 * x), (0, 0)))
        for y, x in np.ndindex(2, 2)
    ]
    return ops.reshape(ops.concatenate(windows, axis=2), (CELL * CELL, -1))


class DenseCells:
    """All cells, in quadtree order: a window is four rows that follow each other.

    So each convolution is a matrix product without any rearrangement, many times as fast backwards
    as a general one.

    Args:
        grid: of the pictures.
        pictures: uint8 (N, S, S).
        dtype: what products are made in.
    """

    def __init__(self, grid: Grid, pictures, dtype: str):
        self.grid, self.dtype = grid, dtype
        self.is_blank = ops.logical_not(ops.any(ops.cast(pictures, "bool"), axis=(1, 2)))
        if grid.is_cut:
            # Zeros beyond the edges are what SAME padding would put there, layer by layer.
            margin = (0, grid.padded - grid.side)
            self.pixels = _to_cells(ops.pad(scaled(pictures, dtype), ((0, 0), margin, margin)))
        else:
            self.pixels = scaled(_to_cells(pictures), dtype)

    def multiply(self, x, layer, kernel):
        """The convolution without its bias: cells of the layer before to those of `layer`."""
        from_one = self.grid.padded_width(layer - 1) == 1
        kernel = flat_kernel(kernel, layer, from_one)
        return mixed_matmul(ops.reshape(x, (-1, kernel.shape[0])), kernel, self.dtype)

    def add(self, x, layer, bias):
        """Adds a bias to the cells that are not beyond the edges."""
        if not self.grid.is_cut:
            return ops.reshape(x, (-1, bias.shape[0])) + bias
        within = self._within(layer).astype("float32")[:, None]
        return ops.reshape(x, (-1, len(within), bias.shape[0])) + within * bias

    def pool(self, x):
        """The maximum over a picture's cells: (N, D)."""
        last = self.grid.layers - 1
        x = ops.reshape(x, (-1, self.grid.padded_width(last) ** 2, x.shape[-1]))
        within = np.flatnonzero(self._within(last))
        if len(within) < x.shape[1]:
            x = ops.take(x, within.astype(np.int32), axis=1)
        pooled = largest(x)
        # Blank pictures must be equal, however a product's kernel rounds its last rows.
        first = ops.argmax(ops.cast(self.is_blank, "int32"))
        return ops.where(self.is_blank[:, None], ops.take(pooled, first, axis=0), pooled)

    def _within(self, layer):
        width = self.grid.padded_width(layer)
        return self.grid.kinds(layer, width).ravel()[_quadtree_order(width)] != OUTSIDE


def _quadtree_order(width):
    """Places row by row of (width, width) cells, a power of two: every quadrant is contiguous."""
    order = np.arange(width * width, dtype=np.int32).reshape(width, width)
    for level in range(int(math.log2(width))):
        half = width >> (level + 1)
        order = order.reshape(-1, 2, half, 2, half).swapaxes(2, 3)
    return order.reshape(-1)


def _to_cells(pictures):
    """(N, S, S), S a power of two, to (cells, 16): cells of 4 x 4 pixels, in quadtree order.

    Inside a cell pixels stay row by row: moving whole rows of a cell takes a quarter of the time.
    """
    side = pictures.shape[1]
    count = side // CELL
    rows = np.arange(side * count, dtype=np.int32).reshape(count, CELL, count).swapaxes(1, 2)
    rows = rows.reshape(-1, CELL)[_quadtree_order(count)].reshape(-1)
    pieces = ops.take(ops.reshape(pictures, (-1, side * count, CELL)), rows, axis=1)
    return ops.reshape(pieces, (-1, CELL * CELL))
