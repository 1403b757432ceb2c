"""The methods: which encoders there are and what each needs, as plain data.

A method is a line of METHODS and the file of this package that has its name. The class `Encoder`
in that file is a Keras layer from the nodes of a batch to codes; see docs/architecture.md. This
module needs no Keras, so that the processes that prepare batches don't load it.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Method(NamedTuple):
    """What the rest of the program has to know of a method.

    Attributes:
        nodes: "module.function" that makes the nodes of sketches, as `patches.make_nodes` does.
            Its module should not need Keras.
        options: those that this method uses and not all methods do.
        masking: the ways of corrupting a sketch, that of training first.
        edges: the kinds of edges to choose from, the default first. With each goes
            "module.function" that computes constant weights for a sketch, as
            `patches.canvas_neighbours` does, or "" where the encoder needs none. Empty where
            there is no choice.
    """

    nodes: str
    options: tuple[str, ...] = ()
    masking: tuple[str, ...] = ("patch",)
    edges: Mapping[str, str] = {}


PATCH_OPTIONS = ("graph_number", "graph_picture_size", "drawing_size")
SP_EDGES = {"synonymous": "", "temporal": "", "spatial": "patches.canvas_neighbours", "none": ""}
HEALER_EDGES = {"temporal": "", "spatial": "patches.relative_neighbours"}
METHODS = {
    "sp_gra2seq": Method(
        "patches.make_nodes",
        (*PATCH_OPTIONS, "edges", "num_mixture"),
        ("patch", "sketchhealer"),
        SP_EDGES,
    ),
    "sketchhealer": Method(
        "patches.make_nodes", (*PATCH_OPTIONS, "edges"), ("sketchhealer", "patch"), HEALER_EDGES
    ),
    "sketchlattice": Method(
        "lattice.make_nodes", ("lattice_size", "lattice_nodes"), ("patch", "lattice")
    ),
    "dc_gra2seq": Method("patches.make_nodes", PATCH_OPTIONS, ("patch", "sketchhealer")),
}


def load(name: str) -> Callable:
    """What "module.name" names."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def unused_options(method: str) -> list[str]:
    """The options that other methods use and this one does not, in no special order."""
    used = METHODS[method].options
    return [name for name in shared_options() if name not in used]


def shared_options() -> dict[str, list[str]]:
    """The options that not all methods use, and the methods that use them."""
    names = dict.fromkeys(name for method in METHODS.values() for name in method.options)
    users = {name: [m for m, method in METHODS.items() if name in method.options] for name in names}
    return {name: found for name, found in users.items() if len(found) < len(METHODS)}
