"""The limits of what a file may ask for, in one table: more is refused before time or memory is spent on it."""

RECORD_BYTES = 4 * 2**20
"""Length of a JSON record; a list of lists takes 25 times as much memory."""
ROW_BYTES, ROWS_BYTES = 2**20, 64 * 2**20
"""Length of a row of metrics or of a study, and of all rows of a file."""
HEADER_BYTES, TENSORS = 8 * 2**20, 50_000
"""Length of the header of a safetensors file, and the number of tensors that it may name."""
DEPTH, ENTRIES, TEXT = 12, 200_000, 2**16
"""Of a record: levels of nesting, number of all values, and number of characters of a text."""
WHOLE = 2**63
"""Largest absolute value of a whole number."""

SIDE, PIXELS = 2**15, 64 * 10**6
"""Side of a mesh or image in pixels, and number of the pixels of an image file."""
CHANNELS, CLASSES, BLOCKS = 10**5, 10**5, 64
STEPS = 2000
"""Time steps of a network."""
TAPS = 1000
"""Taps of a stencil, whose basis is a square matrix of as many rows."""
SHOWN_TAPS = 2**24
"""Taps of all stencils of an opening, as a level keeps them."""

LEVELS, BATCH = 100, 10**6
EPOCHS = (1e-6, 1e6)
"""Least and largest number of epochs of a level."""
