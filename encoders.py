"""Pictures to vectors by strided convolutions: a patch encoder that skips what is uniform.

Shapes: N pictures, S a picture's side, C and D channels of a layer's inputs and outputs.

A convolution of kernel 2 x 2 and stride 2 sees each window of four neighbours alone, and most of a
picture of strokes is blank, or inside a thick line. All blank cells of a level have one and the
same value, and so have all that are full of ink: where shapes may vary, the mixed cells are
computed, and of the uniform ones one of each kind (see `_Mixed`). Elsewhere all are, in an order in
which the four cells of a window are neighbours in memory (see `_Dense`).

Where S is no power of two, SAME padding puts zeros beyond the edges of a level. A cell that is cut
by an edge has another value than a whole one even if it is blank; so a level then has five kinds of
blank cells (see `_Grid`), and full ones count as mixed.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from support.backend import keras, on_cpu, ops
from support.precision import MixedLayer, mixed_matmul, to_compute_dtype

CHANNELS = (8, 32, 64, 128, 256, 512, 512)  # of SP-gra2seq
CELL = 4  # side, in pixels, of what the first two convolutions see at a time
# States of a cell; where nothing is cut, the first two are also the kinds of uniform cells.
BLANK, FULL, MIXED = 0, 1, 2
OUTSIDE = 4  # kind of the cells beyond the edges; 0 is whole, 1 to 3 are cut by an edge or two


def skips_uniform_cells() -> bool:
    """Whether uniform cells are left out: only where shapes may vary, and pay off."""
    return keras.backend.backend() == "tensorflow" and on_cpu()


class PatchEncoder(MixedLayer):
    """Convolutions of kernel 2 and stride 2, ReLUs, and the maximum over all windows left.

    SP-gra2seq (Zang et al., AAAI 2023) has seven, without biases, and no ReLU after the last.
    The products are made in the compute type of the layer's policy.

    Args:
        channels: outputs of each convolution, at least two.
        use_bias: each convolution has a bias.
        last_relu: the last one has a ReLU after it, too.
        seed: int or keras.random.SeedGenerator for the initial weights.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = CHANNELS,
        use_bias: bool = False,
        last_relu: bool = False,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # Numbers of mixed cells are known to no compiler.
        self.supports_jit = not skips_uniform_cells()
        self.relus = [True] * (len(channels) - 1) + [last_relu]
        self.filters, self.biases = [], []
        if use_bias and not isinstance(seed, keras.random.SeedGenerator):
            # From one and the same number biases would start as kernels of their size do.
            seed = keras.random.SeedGenerator(seed)
        inputs = 1
        for layer, outputs in enumerate(channels):
            if use_bias:  # as PyTorch starts its convolutions
                initializer = keras.initializers.VarianceScaling(
                    1 / 3, "fan_in", "uniform", seed=seed
                )
            else:
                # A ReLU halves the variance.
                initializer = keras.initializers.VarianceScaling(
                    1.0 + self.relus[layer], "fan_in", "untruncated_normal", seed=seed
                )
            self.filters.append(
                self.add_weight(
                    shape=(2, 2, inputs, outputs), initializer=initializer, name=f"conv{layer}"
                )
            )
            if use_bias:
                bound = 1 / math.sqrt(4 * inputs)
                self.biases.append(
                    self.add_weight(
                        shape=(outputs,),
                        initializer=keras.initializers.RandomUniform(-bound, bound, seed=seed),
                        name=f"conv{layer}_bias",
                    )
                )
            inputs = outputs
        self.built = True

    def call(self, pictures):
        """uint8 (N, S, S), S at most 256, 0 = background and 255 = ink, to float32 (N, D)."""
        if pictures.shape[0] == 0:
            return ops.zeros((0, self.filters[-1].shape[-1]), self.variable_dtype)
        grid = _Grid(pictures.shape[1], len(self.filters))
        cells = (_Mixed if skips_uniform_cells() else _Dense)(grid, pictures, self.compute_dtype)
        x = cells.pixels
        for layer, kernel in enumerate(self.filters):
            x = cells.multiply(x, layer, self.to_compute_dtype(kernel))
            if self.biases:
                x = cells.add(ops.cast(x, "float32"), layer, self.biases[layer][:])
            x = ops.relu(x) if self.relus[layer] else x
        return ops.cast(cells.pool(x), self.variable_dtype)


class _Grid:
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


def _scaled(pixels, dtype):
    """0 to 255 to -1 to 1, as a product in `dtype` takes it."""
    # The same bits as v / 255 * 2 - 1: a factor of two changes no rounding.
    return to_compute_dtype(ops.cast(pixels, "float32") / 127.5 - 1, dtype)


def _largest(windows):
    """(N, F, D) to (N, D)."""
    # Keras asks that there be a number at all, unless there is one to begin with.
    return ops.max(windows, axis=1, initial=-math.inf)


def _flat_kernel(kernel, layer, from_one):
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


class _Dense:
    """All cells, in quadtree order: a window is four rows that follow each other.

    So each convolution is a matrix product without any rearrangement, many times as fast backwards
    as a general one.

    Args:
        grid: of the pictures.
        pictures: uint8 (N, S, S).
        dtype: what products are made in.
    """

    def __init__(self, grid: _Grid, pictures, dtype: str):
        self.grid, self.dtype = grid, dtype
        self.is_blank = ops.logical_not(ops.any(ops.cast(pictures, "bool"), axis=(1, 2)))
        if grid.is_cut:
            # Zeros beyond the edges are what SAME padding would put there, layer by layer.
            margin = (0, grid.padded - grid.side)
            self.pixels = _to_cells(ops.pad(_scaled(pictures, dtype), ((0, 0), margin, margin)))
        else:
            self.pixels = _scaled(_to_cells(pictures), dtype)

    def multiply(self, x, layer, kernel):
        """The convolution without its bias: cells of the layer before to those of `layer`."""
        from_one = self.grid.padded_width(layer - 1) == 1
        kernel = _flat_kernel(kernel, layer, from_one)
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
        pooled = _largest(x)
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


class _Link(NamedTuple):
    """How the cells of a level are made of those of the level below it.

    There are K kinds of uniform cells, the first rows of every level; after them come its n mixed
    cells.
    """

    children: Any  # int32 (K + n, F): the rows of the cells within each cell
    slots: Any  # int32 (n below,): where in the flat `children` each mixed cell stands


class _Mixed:
    """The mixed cells alone, after one row for each kind of uniform cells; in TensorFlow.

    A picture without ink costs the search for it, whatever the number of such pictures.

    Args:
        grid: of the pictures.
        pictures: uint8 (N, S, S).
        dtype: what products are made in.
    """

    def __init__(self, grid: _Grid, pictures, dtype: str):
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
        x = _scaled(tf.concat([uniform, cells], 0), self.dtype)
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
        kernel = _flat_kernel(kernel, layer, from_one)
        if layer in self.links:
            x = to_compute_dtype(x, self.dtype)
            return _linked_product(x, kernel, self.links[layer], self.grid.kind_count, self.dtype)
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
        return _largest(ops.reshape(windows, (-1, link.children.shape[1], x.shape[-1])))


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

    From the smallest cells up: what is a cell's state? From the whole pictures down: where are the
    mixed cells? So the work below is as much as there are edges of lines, and cells that are near
    each other stay so in memory.
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


def _linked_product(x, kernel, link, kinds, dtype):
    """The rows of each cell's parts, side by side, times a kernel.

    Args:
        x: (rows below, C) from `to_compute_dtype`.
        kernel: (4 C, D), likewise.
        link: what the parts of each cell are.
        kinds: the number of uniform rows in front.
        dtype: what products are made in.

    Returns:
        (rows, D).
    """
    import tensorflow as tf

    @tf.custom_gradient
    def product(x, kernel):
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

    return product(x, kernel)


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
