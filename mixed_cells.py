"""The cells of pictures whose pixels are not all alike, and how layers are computed on them alone.

Shapes: N pictures, S a picture's side, C and D channels of a layer's inputs and outputs.

Most of a picture of strokes is blank, or inside a thick line. All blank cells of a level have one
and the same value, and so have all that are full of ink. So the mixed cells are computed, and of
the uniform ones one of each kind. Where S is not a power of two, blank cells are of five kinds (see
`dense_cells.Grid`), and full ones count as mixed.

How many cells are mixed is known only when the pictures are, so this takes a backend whose shapes
may vary: TensorFlow.
"""

from typing import Any, NamedTuple

import numpy as np

from dense_cells import BLANK, CELL, FULL, OUTSIDE, Grid, flat_kernel, largest, scaled
from support.backend import ops
from support.precision import mixed_matmul, to_compute_dtype

MIXED = 2  # state of a cell, beside BLANK and FULL


class _Link(NamedTuple):
    """How the cells of a level are made of those of the level below it.

    There are K kinds of uniform cells, the first rows of every level; after them come its n mixed
    cells. The link of the pooling is of whole pictures, N rows, and has no rows for uniform ones.
    """

    children: Any  # int32 (K + n, F): the rows of the cells within each cell
    slots: Any  # int32 (n below,): where in the flat `children` each mixed cell stands


class MixedCells:
    """The mixed cells alone, after one row for each kind of uniform cells; in TensorFlow.

    Of a picture that is blank, or full of ink, only the search and the pooling are computed.

    Args:
        grid: of the pictures.
        pictures: uint8 (N, S, S).
        dtype: of the matrix products.
    """

    def __init__(self, grid: Grid, pictures, dtype: str):
        self.grid, self.dtype = grid, dtype
        words = _pixel_words(pictures)
        self.links, places = _find_links(grid, words)
        self.pixels = self._scaled_cells(_take_cells(words, places), places)

    def _scaled_cells(self, cells, places):
        import tensorflow as tf

        kinds = self.grid.kind_count
        uniform = np.zeros((kinds, CELL * CELL), np.uint8)
        if not self.grid.is_cut:
            uniform[FULL] = 255
        x = scaled(tf.concat([uniform, cells], 0), self.dtype)
        if not self.grid.is_cut:
            self.cell_kinds = None
            return x
        found = tf.gather(_kinds_of_level(self.grid, 1), places % self.grid.width(1) ** 2)
        self.cell_kinds = tf.concat([tf.range(kinds), found], 0)
        within = self.grid.kinds_within(1, -1) != OUTSIDE
        return x * tf.gather(within.astype("float32"), self.cell_kinds)

    def multiply(self, x, layer, kernel):
        """The convolution without its bias: cells of the layer before to those of `layer`."""
        from_one = layer > 1 and layer not in self.links
        kernel = flat_kernel(kernel, layer, from_one)
        if layer in self.links:
            x = to_compute_dtype(x, self.dtype)
            return _linked_matmul(x, kernel, self.links[layer], self.grid.kind_count, self.dtype)
        return mixed_matmul(ops.reshape(x, (-1, kernel.shape[0])), kernel, self.dtype)

    def add(self, x, layer, bias):
        """Adds a bias to the cells that are not beyond the edges."""
        import tensorflow as tf

        x = tf.reshape(x, (-1, bias.shape[0]))
        if not self.grid.is_cut:
            return tf.nn.bias_add(x, bias)
        if layer == 0:
            within = tf.gather(self.grid.kinds_within(1, 0) != OUTSIDE, self.cell_kinds)
        else:
            within = tf.not_equal(tf.range(tf.shape(x)[0]), OUTSIDE)
        return x + tf.reshape(tf.cast(within, x.dtype), (-1, 1)) * bias

    def pool(self, x):
        """The maximum over a picture's cells: (N, D)."""
        link = self.links[self.grid.layers]
        windows = _linked_rows(x, link, self.grid.kind_count)
        return largest(ops.reshape(windows, (-1, link.children.shape[1], x.shape[-1])))


def _kinds_of_level(grid, layer):
    return grid.kinds(layer, grid.width(layer)).ravel()


def _pixel_words(pictures):
    """uint8 (N, S, S) to int32 (N, 4 W, W): each the four pixels of a row of a cell."""
    import tensorflow as tf

    side = pictures.shape[1]
    width = -(-side // CELL)
    margin = (0, CELL * width - side)
    if margin[1]:
        pictures = tf.pad(pictures, ((0, 0), margin, margin))
    return tf.bitcast(tf.reshape(pictures, (-1, CELL * width, width, CELL)), tf.int32)


def _take_cells(words, places):
    """The pixels of cells: places row by row, counted over all pictures, to uint8 (n, 16)."""
    import tensorflow as tf

    width = words.shape[2]
    row = places // width
    first = row * (CELL * width) + (places - row * width)
    rows = first[:, None] + width * tf.range(CELL)
    pixels = tf.bitcast(tf.gather(tf.reshape(words, (-1,)), rows), tf.uint8)
    return tf.reshape(pixels, (-1, CELL * CELL))


def _find_links(grid, words):
    """The `_Link` of each layer that joins cells, and of the pooling; the places of the cells.

    First the states of the cells are found, level by level, from the smallest cells to the whole
    pictures. Then the mixed cells are located, from the whole pictures to the smallest cells. So
    the work of the second part grows only with the length of the lines' edges, and cells that are
    near each other in a picture are also near in memory.
    """
    import tensorflow as tf

    states = _cell_states(grid, words)
    fours = {}
    for layer in range(2, grid.layers):
        if grid.width(layer - 1) == 1:
            break
        fours[layer] = _join_four(states)
        is_blank = tf.equal(fours[layer], BLANK)
        states = _states(is_blank, tf.equal(fours[layer], FULL * 0x01010101))
    top = max(fours, default=1)
    states = tf.cast(tf.reshape(states, (-1, grid.width(top) ** 2)), tf.int32)
    kinds = _kinds_of_level(grid, top)[None] if grid.is_cut else states
    link = _link(grid, states, kinds)
    links, places = {grid.layers: link}, link.slots
    for layer in range(top, 1, -1):
        four = tf.gather(tf.reshape(fours[layer], (-1,)), places)
        states = tf.cast(tf.bitcast(four, tf.uint8), tf.int32)
        kinds = _kinds_below(grid, layer, places) if grid.is_cut else states
        link = _link(grid, states, kinds)
        links[layer] = _after_uniform(grid, layer, link)
        places = _places_below(grid, layer, places, link.slots)
    return links, places


def _cell_states(grid, words):
    """int32 (N, 4 W, W) to the states of the smallest cells, uint8 (N, W, W)."""
    import tensorflow as tf

    width = words.shape[2]
    words = tf.reshape(words, (-1, width, CELL, width))
    # All four words are 0 (no ink) or -1 (four pixels of it) if the largest and the least are.
    # That takes a third of the time of joining their bits.
    largest, least = tf.reduce_max(words, axis=2), tf.reduce_min(words, axis=2)
    is_full = tf.equal(largest, -1) & tf.equal(least, -1) & (not grid.is_cut)
    return _states(tf.equal(largest, 0) & tf.equal(least, 0), is_full)


def _states(is_blank, is_full):
    import tensorflow as tf

    return FULL * tf.cast(is_full, tf.uint8) + MIXED * tf.cast(~(is_blank | is_full), tf.uint8)


def _join_four(states):
    """uint8 (N, W, W) to int32 (N, V, V), V = ceil(W / 2): the bytes of a window."""
    import tensorflow as tf

    width = states.shape[1]
    if width % 2:
        states = tf.pad(states, ((0, 0), (0, 1), (0, 1)))
    half = (width + 1) // 2
    pairs = tf.bitcast(tf.reshape(states, (-1, 2 * half, half, 2)), tf.uint16)
    upper, lower = tf.unstack(tf.reshape(tf.cast(pairs, tf.int32), (-1, half, 2, half)), axis=2)
    return upper + lower * 2**16


def _kinds_below(grid, layer, places):
    """The kinds of the cells within the cells of `layer` at `places`, if blank, (n, 4)."""
    import tensorflow as tf

    width = grid.width(layer)
    kinds = grid.kinds(layer - 1, 2 * width).reshape(width, 2, width, 2).swapaxes(1, 2)
    return tf.gather(kinds.reshape(-1, 4), places % width**2)


def _places_below(grid, layer, places, slots):
    """Where the mixed cells of the layer below are, row by row and over all pictures."""
    import tensorflow as tf

    width, below = grid.width(layer), grid.width(layer - 1)
    parent = slots // 4
    place = slots - 4 * parent
    parent = tf.gather(places, parent)
    row = parent // width
    column = parent - row * width
    row_below = 2 * row + place // 2
    if below < 2 * width:
        row_below -= row // width
    return row_below * below + 2 * column + place % 2


def _link(grid, states, kinds):
    """The `_Link` of cells whose parts have these states (n, F), in the order of the rows.

    Args:
        grid: of the pictures.
        states: of the parts.
        kinds: of those that are uniform, (n, F) or (1, F).
    """
    import tensorflow as tf

    is_mixed = tf.equal(states, MIXED)
    mixed = tf.cast(is_mixed, tf.int32)
    before = tf.cumsum(tf.reduce_sum(mixed, axis=1), exclusive=True) + (grid.kind_count - 1)
    row = tf.cumsum(mixed, axis=1) + before[:, None]
    slots = tf.where(tf.reshape(is_mixed, (-1,)))
    return _Link(tf.where(is_mixed, row, kinds), tf.cast(tf.reshape(slots, (-1,)), tf.int32))


def _after_uniform(grid, layer, link):
    """The link of a level, its uniform cells included."""
    import tensorflow as tf

    uniform = grid.kinds_within(layer, layer - 1)
    return _Link(tf.concat([uniform, link.children], 0), link.slots + uniform.size)


# A mixed cell stands in one slot alone. So its gradient is that slot's: one more gather, where
# automatic differentiation would scatter. Only the few uniform rows need sums.


def _linked_matmul(x, kernel, link, kinds, dtype):
    """The rows of each cell's parts, side by side, times a kernel.

    Args:
        x: (rows below, C) from `to_compute_dtype`.
        kernel: (4 C, D), likewise.
        link: what the parts of each cell are.
        kinds: the number of uniform rows in front.
        dtype: of the matrix products.

    Returns:
        (rows, D).
    """
    import tensorflow as tf

    @tf.custom_gradient
    def matmul_fn(x, kernel):
        parts = tf.reshape(tf.gather(x, link.children), (-1, kernel.shape[0]))

        def gradient(d):
            d = to_compute_dtype(d, dtype)
            d_parts = tf.reshape(tf.matmul(d, kernel, transpose_b=True), (-1, x.shape[1]))
            by_slot = tf.reshape(
                tf.matmul(_uniform_parts(link, kinds), d, transpose_a=True), (4, kinds, -1)
            )
            kernels = tf.reshape(kernel, (4, x.shape[1], -1))
            d_uniform = tf.reduce_sum(tf.matmul(by_slot, kernels, transpose_b=True), axis=0)
            return (
                _gradient_of_rows(d_parts, d_uniform, link),
                tf.matmul(parts, d, transpose_a=True),
            )

        return tf.matmul(parts, kernel), gradient

    return matmul_fn(x, kernel)


def _linked_rows(x, link, kinds):
    """(rows below, C) to the rows of all cells' parts, (cells F, C)."""
    import tensorflow as tf

    @tf.custom_gradient
    def rows(x):
        def gradient(d):
            parts = tf.reshape(_uniform_parts(link, kinds), (-1, kinds))
            return _gradient_of_rows(d, tf.matmul(parts, d, transpose_a=True), link)

        return tf.gather(x, tf.reshape(link.children, (-1,))), gradient

    return rows(x)


def _uniform_parts(link, kinds):
    """Which parts of the cells are uniform, of which kind: 0 or 1, float32 (cells, F kinds)."""
    import tensorflow as tf

    is_kind = tf.equal(link.children[:, :, None], tf.range(kinds))
    return tf.cast(tf.reshape(is_kind, (-1, link.children.shape[1] * kinds)), tf.float32)


def _gradient_of_rows(d_parts, d_uniform, link):
    """(cells F, C) and that of the uniform rows (K, C) to (K + n, C)."""
    import tensorflow as tf

    return tf.concat([d_uniform, tf.gather(d_parts, link.slots)], 0)
