"""Arrays in, arrays out: the arithmetic of ZeMosaic.

No files, no settings, no windows and no texts. Every function takes arrays and keyword numbers and
returns arrays or a small frozen dataclass. Images are float32 with axes ``(channel, y, x)``; pixel
centres are integers, the first pixel is 0; a missing sample is NaN; angles are degrees.
"""

from .compiled_code import find_a_place

__version__ = "5.0.0"

find_a_place()
