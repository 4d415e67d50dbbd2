"""Reads a lake by glob with DuckDB, Polars and pyarrow, as other people would, and prints what each saw as JSON.

    read_lake.py LAKE            a folder, or s3://bucket with AWS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
"""

import hashlib
import json
import os
import sys
import urllib.parse

import polars
import pyarrow.dataset
import pyarrow.fs

from in_duckdb import connected

LAKE = sys.argv[1].rstrip("/")
ORIGIN = "origin_topic_id, origin_partition, origin_offset"


def main():
    print(json.dumps({"duckdb": with_duckdb(), "polars": with_polars(), "pyarrow": with_pyarrow()}))


def with_duckdb():
    connection = connected(LAKE)

    def one(query):
        return connection.execute(query).fetchone()[0]

    outcomes = connection.execute(
        "SELECT tenant, status, count(*) AS jobs FROM results GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return {
        "results": one("SELECT count(*) FROM results"),
        "costs": one("SELECT count(*) FROM costs"),
        "distinct_origins": one(f"SELECT count(*) FROM (SELECT DISTINCT {ORIGIN} FROM results)"),
        "joined": one(f"SELECT count(*) FROM results JOIN costs USING (tenant, {ORIGIN}) WHERE job_id = x_job_id AND device_time_ns = x_device_time_ns"),
        "outcomes": [{"tenant": tenant, "status": status, "jobs": jobs} for tenant, status, jobs in outcomes],
        "device_time_ns": int(one("SELECT coalesce(sum(x_device_time_ns), 0) FROM costs")),
        "unbalanced_batches": one(
            "SELECT count(*) FROM (SELECT x_batch_id FROM costs WHERE x_batch_id IS NOT NULL GROUP BY x_batch_id "
            "HAVING count(*) <> any_value(x_batch_jobs) OR sum(x_device_time_ns) <> any_value(x_batch_device_time_ns))"
        ),
        "bills_off": one("SELECT count(*) FROM costs WHERE BilledCost <> EffectiveCost OR PricingQuantity * 1000000000 <> x_device_time_ns"),
        "succeeded_without_vector": one("SELECT count(*) FROM results WHERE (status = 'succeeded') <> (len(embedding) = 384)  IS TRUE"),
        "truncated": one("SELECT count(*) FROM results WHERE truncated"),
        "trace_ids": one("SELECT count(trace_id) FROM results"),
        "audited": int(one("SELECT sum(count) FROM audit WHERE api.operation = 'jobs.decide' AND type_uid = 600301")),
    }


def with_polars():
    def scan(table):
        options = {}
        if LAKE.startswith("s3://"):
            options = {
                "aws_endpoint_url": os.environ["AWS_ENDPOINT"],
                "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
                "aws_region": "us-east-1",
                "aws_allow_http": "true",
            }
        return polars.scan_parquet(f"{LAKE}/{table}/**/*.parquet", hive_partitioning=True, storage_options=options)

    origin = ORIGIN.split(", ")
    results, costs = scan("results"), scan("costs")
    joined = results.join(costs, on=["tenant", *origin]).select(polars.len()).collect().item()
    return {
        "results": results.select(polars.len()).collect().item(),
        "costs": costs.select(polars.len()).collect().item(),
        "joined": joined,
        "device_time_ns": costs.select(polars.col("x_device_time_ns").sum()).collect().item(),
        "audited": scan("audit")
        .filter(polars.col("api").struct.field("operation") == "jobs.decide")
        .select(polars.col("count").sum())
        .collect()
        .item(),
    }


def with_pyarrow():
    filesystem, root = pyarrow.fs.LocalFileSystem(), LAKE
    if LAKE.startswith("s3://"):
        endpoint = urllib.parse.urlparse(os.environ["AWS_ENDPOINT"])
        filesystem = pyarrow.fs.S3FileSystem(
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=endpoint.netloc,
            scheme=endpoint.scheme,
            region="us-east-1",
        )
        root = LAKE.removeprefix("s3://")

    def rows(table):
        return pyarrow.dataset.dataset(f"{root}/{table}", filesystem=filesystem, partitioning="hive").to_table()

    results, costs = rows("results"), rows("costs")
    origin = ["tenant", *ORIGIN.split(", ")]
    keys = results.select(origin).join(costs.select(origin), keys=origin, join_type="inner")
    device_time_ns = sum(costs["x_device_time_ns"].to_pylist())
    audit = rows("audit")
    decided = [row for row in audit.to_pylist() if row["api"]["operation"] == "jobs.decide"]
    return {
        "results": len(results),
        "costs": len(costs),
        "joined": len(keys),
        "device_time_ns": device_time_ns,
        "audited": sum(row["count"] for row in decided),
        "unchained": unchained(audit.drop_columns(["date"])),
    }


def unchained(audit):
    """How many rows of the audit, of a topic that has only ever had one id, do not follow from the row before."""
    audit = audit.sort_by([("x_record_offset", "ascending"), ("x_record_index", "ascending")])
    row_type = pyarrow.struct([field for field in audit.schema if field.name != "x_hash"])
    rows = audit.drop_columns(["x_hash"]).to_pylist()
    hashes = [bytes.fromhex(hash) for hash in audit["x_hash"].to_pylist()]
    follows = [
        hash == hashlib.sha256(before + canonical(row, row_type)).digest()
        for row, before, hash in zip(rows[1:], hashes, hashes[1:])
    ]
    return follows.count(False)


def canonical(value, kind):
    """The canonical bytes of a value, as ARCHITECTURE.md has them."""

    def integer(number):
        return number.to_bytes(8, "big", signed=True)

    def text(text):
        return integer(len(text.encode())) + text.encode()

    if pyarrow.types.is_struct(kind):
        fields = [field for field in kind if value[field.name] is not None]
        return b"".join(text(field.name) + canonical(value[field.name], field.type) for field in fields) + integer(0)
    if pyarrow.types.is_list(kind):
        return integer(len(value)) + b"".join(canonical(element, kind.value_type) for element in value)
    if pyarrow.types.is_string(kind):
        return text(value)
    if pyarrow.types.is_timestamp(kind):
        return integer(pyarrow.scalar(value, kind).value)
    return integer(value)


main()
