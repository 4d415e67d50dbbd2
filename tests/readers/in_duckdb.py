"""A lake as DuckDB reads it, and what it answers to a query, as JSON.

    in_duckdb.py LAKE QUERY      LAKE as for read_lake.py; the views are results, costs and audit
"""

import glob
import importlib.util
import json
import os
import sys
import urllib.parse

import duckdb


def connected(lake):
    connection = duckdb.connect()
    if lake.startswith("s3://"):
        package = importlib.util.find_spec("duckdb_extension_httpfs").submodule_search_locations[0]
        connection.execute(f"LOAD '{glob.glob(package + '/extensions/*/httpfs.duckdb_extension')[0]}'")
        endpoint = urllib.parse.urlparse(os.environ["AWS_ENDPOINT"]).netloc
        connection.execute(
            "CREATE SECRET (TYPE s3, KEY_ID $1, SECRET $2, ENDPOINT $3, URL_STYLE 'path', USE_SSL false)",
            [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], endpoint],
        )
    connection.execute(f"CREATE VIEW results AS FROM read_parquet('{lake}/results/**/*.parquet', hive_partitioning = true)")
    connection.execute(f"CREATE VIEW costs AS FROM read_parquet('{lake}/costs/**/*.parquet', hive_partitioning = true)")
    connection.execute(f"CREATE VIEW audit AS FROM read_parquet('{lake}/audit/**/*.parquet', hive_partitioning = true)")
    return connection


if __name__ == "__main__":
    print(json.dumps(connected(sys.argv[1].rstrip("/")).execute(sys.argv[2]).fetchall()))
