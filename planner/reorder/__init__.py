"""Rows and fields in the order in which a prefix cache saves the most tokens. Pure.

fields.py    how a row is written into a prompt; which fields may move
table.py     the table as codes and token counts; values are tokenised once
depend.py    functional dependencies found in the data
tree.py      the prefix tree of an order, and what a cache saves by it
search.py    candidate orders for a whole table
share.py     which of a few orders each row takes
solve.py     all of it; the order of the rows
template.py  free fields in a prompt's template
windows.py   tables in windows, without losing what windows share
"""

from .fields import Field, Layout
from .solve import Arrangement, arrange
from .table import Column, Table, encode, error_of_sums
from .windows import Windows

__all__ = [
    "Arrangement",
    "Column",
    "Field",
    "Layout",
    "Table",
    "Windows",
    "arrange",
    "encode",
    "error_of_sums",
]
