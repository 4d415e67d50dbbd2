"""What stands in a lake, read from its files alone."""

import pyarrow
import pyarrow.parquet


def rows(folder):
    """Rows by table, from the files' footers."""
    return {table: rows_under(folder / table) for table in ("results", "costs")}


def rows_under(folder):
    return sum(pyarrow.parquet.read_metadata(path).num_rows for path in folder.glob("**/*.parquet"))


def written_s(folder):
    """When the last file of rows was written."""
    return max(path.stat().st_mtime for table in ("results", "costs") for path in (folder / table).glob("**/*.parquet"))


def table(folder, columns):
    """These columns of all rows under a folder."""
    files = sorted(folder.glob("**/*.parquet"))
    return pyarrow.concat_tables(pyarrow.parquet.read_table(path, columns=columns, partitioning=None) for path in files)


def outcomes(folder):
    """Tokens in all, and tokens per second between the first outcomes and the last.

    Outcomes are stamped a window at a time, so the first window's tokens are not counted: the time that they took lies
    before its stamp.
    """
    found = table(folder / "results", ["completed_at", "input_tokens"])
    stamps, tokens = found["completed_at"].cast(pyarrow.int64()).to_numpy(), found["input_tokens"].to_numpy()
    later = tokens[stamps > stamps.min()].sum()
    seconds = (stamps.max() - stamps.min()) / 1e6
    return {"tokens": int(tokens.sum()), "steady_tokens_per_s": float(later / seconds) if seconds else 0.0}
