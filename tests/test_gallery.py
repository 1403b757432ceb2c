"""Galleries, web pages and tables of confusion: all pictures there, text in any script."""

import base64
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from matplotlib import font_manager
from sketch_graphs import link, masked_graph, some_sketches

import doodles
import drawing
import gallery
from gallery import Example
from support import fonts

LINE = np.array([[30, 0, 0], [0, 10, 1]], np.int16)


def contains(page, picture):
    """Whether the colour page shows the picture somewhere, except for the frame drawn on it."""
    inner = picture[2:-2, 2:-2]
    if inner.ndim == 2:
        inner = cv2.cvtColor(inner, cv2.COLOR_GRAY2BGR)
    _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(page, inner, cv2.TM_SQDIFF))
    return (page[y:, x:][: len(inner), : len(inner)] == inner).all()


def example(category="cat", index=7, seed=0):
    rng = np.random.default_rng(seed)
    sketch = doodles.doodle("fish", rng)
    graph = masked_graph(sketch)
    picture = drawing.draw_graph(sketch, graph, link((2, 3, 1)))
    return Example(category, index, sketch, graph.patches[0], doodles.doodle("tree", rng), picture)


def test_gallery_shows_everything():
    """Each example's four pictures are on the page, at the size asked for."""
    examples = [example("cat", 1, 1), example("dog", 2, 2)]
    page = gallery.gallery(examples, title="healed")
    assert page.dtype == np.uint8 and page.ndim == 3
    for one in examples:
        assert contains(page, drawing.to_picture(one.original))
        assert contains(page, drawing.to_picture(one.generated))
        assert contains(page, drawing.canvas_picture(one.corrupted, 225, one.original))
        small = cv2.resize(one.graph_picture, (225, 225), interpolation=cv2.INTER_AREA)
        assert contains(page, small)


def test_gallery_of_two_columns():
    """A preview has no corrupted pictures or graphs, and no empty columns for them."""
    whole = [example(seed=seed) for seed in range(2)]
    preview = [e._replace(corrupted=None, graph_picture=None) for e in whole]
    wide, narrow = gallery.gallery(whole), gallery.gallery(preview)
    assert narrow.shape[0] == wide.shape[0] and narrow.shape[1] < 0.6 * wide.shape[1]


def test_small_cells_have_fine_lines():
    """Lines can't be thinner than three pixels; a small cell is a larger picture made smaller."""
    one = Example("cat", 0, some_sketches()[0])
    page = gallery.gallery([one], cell=75)
    assert contains(
        page, cv2.resize(drawing.to_picture(one.original), (75, 75), interpolation=cv2.INTER_AREA)
    )


def test_gallery_starts_a_row_for_each_category():
    """Two examples of one category fit in a row, of two categories they do not."""
    same = gallery.gallery([example("cat"), example("cat")])
    different = gallery.gallery([example("cat"), example("dog")])
    assert different.shape[0] == 2 * same.shape[0] and same.shape[1] == 2 * different.shape[1]
    assert gallery.gallery([example("cat")] * 3, per_row=3).shape[0] == same.shape[0]


def test_galleries_of_nothing():
    """No examples, or examples of which a part or all is missing or empty, crash nothing."""
    nothing = Example("cat", 0)
    empty = Example("cat", 1, original=np.zeros((0, 3)), generated=np.zeros((0, 3)))
    for examples in ([], [nothing], [empty], [nothing, empty, example()]):
        page = gallery.gallery(examples)
        assert page.ndim == 3 and page.size > 0
        assert gallery.index_html(examples).count("<article>") == len(examples)
    assert "no sketches" in gallery.index_html([])


def band(page, example_side=225):
    """Where the caption of a gallery's first example is."""
    return page[: example_side // 9]


@pytest.mark.filterwarnings("error")
def test_captions_in_any_script(monkeypatch):
    """Letters are drawn as they are; what no font has is shown as its code point, never as ?."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    [cache.cache_clear() for cache in (fonts._system_fonts, fonts._family, fonts._ink)]

    def caption(name):
        return band(gallery.gallery([Example(name, 1, LINE)]))

    for name, other in (("ñandú", "nandu"), ("кошка", "?????"), ("a$x$", "ax"), ("火", "?")):
        assert (caption(name)[:, :90] != caption(other)[:, :90]).any(), name
    np.testing.assert_array_equal(caption("火"), caption("U+706B"))
    np.testing.assert_array_equal(caption("two\nlines"), caption("two lines"))
    fonts._family.cache_clear()


@pytest.mark.filterwarnings("error")
def test_fonts_of_the_machine_fill_in(monkeypatch, tmp_path):
    """A character that matplotlib's own font lacks comes from a font that has it."""
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    with_cyrillic = font_manager.findfont("DejaVu Sans")
    only_latin = font_manager.findfont("cmr10")
    paths = [str(tmp_path / "damaged.ttf"), with_cyrillic]
    monkeypatch.setattr(fonts, "FONT", "cmr10")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    caches = fonts._system_fonts, fonts._family, fonts._ink
    [cache.cache_clear() for cache in caches]
    assert fonts.families("fox") == ["cmr10"] and only_latin != with_cyrillic
    assert fonts.families("лис a") == ["cmr10", "DejaVu Sans"]
    assert fonts.showable("лис 火") == "лис U+706B"
    assert fonts._ink("лис", 20).max() > 0.8
    [cache.cache_clear() for cache in caches]


def test_a_caption_stays_in_its_tile():
    """One that is too long is cut; what it says differs from example to example."""
    short = gallery.gallery([example("W" * 200)._replace(corrupted=None)], cell=100)
    assert (short[:, -3:] == short[0, 0]).all()
    assert (gallery.gallery([example("cat", 1)]) != gallery.gallery([example("cat", 2)])).any()


def test_gallery_that_flows():
    """Without rows of their own, categories fill the rows one after the other."""
    examples = [example(name) for name in "abcde"]
    wide = gallery.gallery(examples[:4], per_row=4, by_category=False)
    page = gallery.gallery(examples, per_row=4, by_category=False)
    assert page.shape[0] == 2 * wide.shape[0] and page.shape[1] == wide.shape[1]
    np.testing.assert_array_equal(page[: len(wide)], wide)


class Page(HTMLParser):
    """Checks that all elements are closed in order; keeps tags, attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_html_is_whole_and_self_contained():
    """Each picture is in the page itself, and nothing is fetched from elsewhere."""
    one = example("cat", 12)
    text = gallery.index_html([one, example("dog", 3)], title="Healed", metadata={"prob": 0.3})
    page = Page(text)
    assert page.tags.count("svg") == 4 and page.tags.count("img") == 4
    assert page.tags.count("h2") == 2 and {"cat", "dog", "#12", "#3", "0.3"} <= set(page.texts)
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    png = np.frombuffer(base64.b64decode(links[0].partition(",")[2]), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(png, cv2.IMREAD_COLOR), one.graph_picture)


def test_html_is_escaped():
    """Names come from files and flags; none may become markup."""
    evil = "</title><script>alert('x')</script>&{body}"
    page = Page(gallery.index_html([Example(evil, 0)], title=evil, metadata={evil: evil}))
    assert "script" not in page.tags
    assert page.texts.count(evil) == 4  # title, heading, category and the value
    assert f"{evil}:" in page.texts


@pytest.mark.filterwarnings("error")
def test_the_confusion_picture():
    """Shares are coloured in their cells, with numbers in them; names are beside and below."""
    counts = np.array([[30, 10, 0], [0, 0, 0], [0, 5, 5]])
    tables = {"one": counts, "two": np.eye(3, dtype=int)}
    side, gap, margin = 280, 56, 16

    def picture(names):
        png = np.frombuffer(gallery.confusion_png(tables, names), np.uint8)
        return cv2.imdecode(png, cv2.IMREAD_COLOR)

    page = picture(["a", "W" * 12, "ñ$x$"])
    right = page.shape[1] - margin
    ink = (page != gallery.PAGE).any(axis=2)
    lines = np.flatnonzero(ink[:, right - side // 2 :].mean(axis=1) > 0.6)
    top, cell = int(lines[0]), side / 3
    for table, start in ((counts, right - 2 * side - gap), (np.eye(3), right - side)):
        for row, column in np.ndindex(3, 3):
            x, y = round(start + column * cell), round(top + row * cell)
            inside = page[y + 6 : y + 86, x + 6 : x + 86]
            share = table[row, column] / max(table[row].sum(), 1)
            paint = drawing.EDGE if row == column else drawing.MASKED
            expected = np.array([255 - share * (255 - part) for part in paint])
            np.testing.assert_allclose(inside[0, 0], expected, atol=1)  # rounded or cut
            assert (inside != inside[0, 0]).any() == (share > 0), "a number where there is a share"
    left = right - 2 * side - gap
    middle = [ink[round(top + (i + 0.5) * cell) - 9 :][:18, : left - 2] for i in range(3)]
    widths = [np.ptp(np.flatnonzero(part.any(0))) for part in middle]
    heights = [
        np.ptp(
            np.flatnonzero(
                ink[top + side + 2 :, round(left + (i + 0.5) * cell) - 9 :][:, :18].any(1)
            )
        )
        for i in range(3)
    ]
    for sizes in (widths, heights):  # as a name reads across, it reads upwards
        assert sizes[1] > 3 * sizes[2] > 3 * sizes[0]
    np.testing.assert_allclose(widths, heights, atol=2)
    assert (page[:, :margin] == gallery.PAGE).all() and (page[:, right + 1 :] == gallery.PAGE).all()
    for other in (["b", "W" * 12, "ñ$x$"], ["a", "W" * 12, "n$x$"], ["a", "W" * 12, "ñx"]):
        changed = picture(other)
        assert changed.shape != page.shape or (changed != page).any()


@pytest.mark.slow
def test_a_table_of_many_categories():
    """More categories than there is room for numbers: smaller cells, all names."""
    count = gallery.MAX_NUMBERED + 1
    few, many = (
        cv2.imdecode(
            np.frombuffer(gallery.confusion_png({"t": np.eye(n, dtype=int)}, ["n"] * n), np.uint8),
            cv2.IMREAD_COLOR,
        )
        for n in (count - 1, count)
    )
    assert many.shape[1] < few.shape[1] / 2
    blue = (np.abs(many.astype(int) - drawing.EDGE) < 3).all(axis=2)
    assert blue.sum() > count * 100
