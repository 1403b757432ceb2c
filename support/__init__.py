"""What a reader of the paper need not see."""

import os

for _descriptor in range(3):
    # A standard stream that the caller closed: its number must not go to a file opened later,
    # into which libraries would then write their messages.
    try:
        os.fstat(_descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
