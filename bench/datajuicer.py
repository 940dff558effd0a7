"""Runs in data-juicer's own environment, not in ours: its operators over a JSON-lines file, timed. See
``cases/curation_datajuicer.py``.

``python bench/datajuicer.py rows.jsonl operators.json answer.json``
"""

from __future__ import annotations

import json
import sys
import time


def main(rows: str, wanted: str, answer: str) -> None:
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops import load_ops
    from data_juicer.utils.constant import Fields
    from datasets import disable_caching, disable_progress_bars

    disable_caching()
    disable_progress_bars()
    with open(rows, encoding="utf-8") as file:
        data = NestedDataset.from_list([json.loads(line) for line in file])
    results = {}
    with open(wanted, encoding="utf-8") as file:
        configurations = json.load(file)
    for configuration in configurations:
        ((name, options),) = configuration.items()
        (operator,) = load_ops([{name: {**options, "num_proc": 1}}])
        operator.run(data.select(range(50)))
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            done = operator.run(data)
            seconds.append(time.perf_counter() - began)
        stats = done[Fields.stats] if Fields.stats in done.column_names else None
        results[name] = {"seconds": seconds, "kept": done["id"][:], "stats": stats[:] if stats is not None else None}
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
