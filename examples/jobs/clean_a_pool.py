"""Take bad rows out of a pool, with a reason for every removal.

python examples/jobs/clean_a_pool.py --data csv:pool.csv
"""

import argparse
from collections import Counter
from pathlib import Path

import diptych as dp
from diptych.curation.run import curate, data_address, decisions

if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:full?size=64", help="the pool")
    parser.add_argument("--limit", type=int, default=300, help="at most so many rows of it; 0: all")
    parser.add_argument("--plan", default="own-photos", help="a preset (diptych curate plans) or a YAML file")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/curated"))
    given = parser.parse_args()

    curate(given.plan, given.data, given.out, overrides=[f"pool.limit={given.limit}"] if given.limit else None)
    reasons: Counter[str] = Counter()
    for table in decisions(given.out):
        reasons.update(row.get("reason") or "kept" for row in table.to_pylist())
    for reason, count in reasons.most_common():
        print(f"{count:6,}  {reason}")
    kept = dp.open_source(data_address(given.out, "parquet"))
    print(f"train on it: diptych train clip --data {data_address(given.out, 'parquet')}  ({len(kept):,} rows)")
