"""Moving mail out of other packages' tables, with those packages as they are on PyPI."""
