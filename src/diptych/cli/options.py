"""Options of several verbs."""

from __future__ import annotations

from typing import Annotated

import typer

DATA = (
    "Where the data is: `scenes:small`, `folder:photos/`, `csv:table.csv`, `parquet:part-*.parquet`, `coco:captions.json`, "
    "`karpathy:dataset.json`, `wds:shards/{000..031}.tar`, `packed:directory`, `mix:0.7*coco:a.json+0.3*packed:b`."
)
BUDGET = "What a run may spend: `90s`, `10m`, `200k samples`, `5M tokens`, `30T flops`, `500 steps`."
SET = (
    "Override any key of the recipe, as often as you like: `--set stages.0.lr=5e-4 --set data.image_size=96`; of every stage: "
    "`--set 'stages.*.batch_size=32'`."
)
TASKS = (
    "Comma-separated, settings after `?`: `pope,vqa?n=200,winoground?file=examples.jsonl`. Default: retrieval, retrieval-1000, "
    "zeroshot, controlled, captions and embedding. `all`: every task. Tasks that do not fit the data or the model are skipped."
)

DataOption = Annotated[str | None, typer.Option("--data", "-d", help=DATA)]
BudgetOption = Annotated[str | None, typer.Option("--budget", "-b", help=BUDGET)]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help=SET)]
TasksOption = Annotated[str | None, typer.Option(help=TASKS)]
FEWER = (
    "Of a run: read pictures with fewer tokens, at equal weights. `tome=25`: the tower merges patches until 25 are left; "
    "`scan=16`: the language model gets the 16 patches with the most attention in the tower; `keep=0.5,after=2`: half of the image "
    "tokens are left behind its second layer. Also as an address, `fewer:RUN?keep=0.5`."
)
FewerOption = Annotated[str | None, typer.Option(help=FEWER)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
