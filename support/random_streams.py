"""The random streams: numbers that keep apart what is drawn for different purposes.

A generator's key is (seed, stream, ...); the comments say what follows the stream.
"""

ORDER_STREAM = 0  # epoch. The order of the training sketches.
SKETCH_STREAM = 1  # epoch, position. A training sketch's augmentation, masking, noise and dropout.
EVALUATION_STREAM = 2  # split, position. The noise of a code in evaluation.
GENERATION_STREAM = 3  # category and row, or drawing and variant. A sketch as it is drawn.
SPLIT_STREAM = 4  # checksum of a category's name. Which of its sketches are held out.
MASKING_STREAM = 4  # split, category and row, or a drawing's number. What is erased in sampling.
# These two are the same number. Keys of sketches are longer than those of categories. A drawing's
# number could equal a checksum of 32 bits, but then one stream shuffles and the other erases.

# The classifier of Rec has a seed of its own. Where it equals a model's, both trainings draw the
# same numbers, which does no harm: neither takes anything from the other.
CLASSIFIER_ORDER_STREAM = 0  # pass over the split. The order of the training sketches.
CLASSIFIER_SKETCH_STREAM = 1  # pass, position. How a training picture is augmented.
