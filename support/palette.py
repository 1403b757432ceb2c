"""Colours: eight that colour-blind readers tell apart (Okabe and Ito 2008), and those of graphs."""

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY_BLUE, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY_BLUE, PURPLE, YELLOW, BLACK)
EDGE_COLOUR, MASKED_COLOUR = "#0a5fbe", "#d7283c"  # a graph's edges, drawn strokes; what is erased


def bgr(colour: str) -> tuple[int, int, int]:
    """Blue, green and red, 0 to 255, as OpenCV takes them, of a colour "#RRGGBB"."""
    red, green, blue = bytes.fromhex(colour[1:])
    return blue, green, red
