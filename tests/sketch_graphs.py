"""Doodles, their graphs and links, for the tests of what is drawn."""

import numpy as np

import doodles
import utils


def some_sketches():
    """A doodle of each category."""
    rng = np.random.default_rng(0)
    return [doodles.doodle(category, rng) for category in doodles.CATEGORIES]


def masked_graph(sketch, masked=(1,)):
    """The graph of a sketch, of which the patches with these numbers are erased."""
    seeds = np.ones(20)
    seeds[list(masked)] = 0
    return utils.make_graph(sketch, mask_prob=0.1, seeds=seeds)


def link(*links):
    """An adjacency with (from, to, weight) links; nodes counted from 0 = whole sketch."""
    adjacency = np.zeros((21, 21), np.float32)
    for a, b, weight in links:
        adjacency[a, b] = weight
    return adjacency
