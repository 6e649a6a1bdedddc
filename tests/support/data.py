"""Data sets of rows in memory."""

from diverseevol_fast.data.dataset import Data, load_data


def data_of(rows) -> Data:
    """Rows or texts as a data set."""
    return load_data(rows)[0]
