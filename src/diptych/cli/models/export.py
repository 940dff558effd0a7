"""``diptych export``: a run in the format of another library, or a dual encoder as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diptych.inference.onnx.certificate import Certificate
    from diptych.inference.onnx.export import ExportedOnnx


def export(
    run: Annotated[
        str, typer.Argument(help="A run directory; for ONNX also `conse`, hf:NAME_OR_PATH, an adapted model or an ONNX export.")
    ],
    to: Annotated[
        str, typer.Option("--to", help="The library that will load it: transformers or open_clip; or onnx.")
    ] = "transformers",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory; default RUN/export/FORMAT.")] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best (by validation loss) or a name such as step-00000500.")] = "last",
    architecture: Annotated[
        str, typer.Option("--class", help="The class, if several fit the run, such as BlipForConditionalGeneration.")
    ] = "",
    adapters: Annotated[
        bool,
        typer.Option(
            "--adapters", help="Write a language model's adapters separately, for peft, to OUT/adapter; otherwise they are merged."
        ),
    ] = False,
    precision: Annotated[str, typer.Option(help="Of an ONNX export: fp32, fp16 or int8.")] = "fp32",
    data: Annotated[
        str, typer.Option(help="Pictures with captions for the certificate of an ONNX export; default: the run's own.")
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Make the certificate of an ONNX export again, on this machine.")] = False,
    runtime: Annotated[
        str, typer.Option(help="What runs the graphs for the certificate: onnxruntime or openvino.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=0, help="For the certificate's times; 0: OMP_NUM_THREADS, or all processors.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run as a directory that another library loads without our code: weights, tokenizer, image processor, model card.

    Example: `diptych train clip --set parts.vision.kind=clip --set parts.text.kind=clip`, then
    `diptych export runs/clip --to transformers`
    and `AutoModel.from_pretrained("runs/clip/export/transformers")`.

    With --to onnx, a dual encoder as two graphs that run without torch, with a certificate of what they lose:
    `diptych export runs/clip --to onnx --precision int8`, then `diptych evaluate runs/clip/export/onnx-int8`.
    """
    from dataclasses import asdict

    from diptych.cli.results import print_json

    if to == "onnx" or check:
        _onnx(run, out, checkpoint, precision, data, check, runtime, threads, json_)
        return
    from diptych.inference.export import export as write

    made = write(Path(run), to, out, checkpoint, architecture, adapters)
    if json_:
        print_json({**asdict(made), "path": str(made.path)})
        return
    typer.echo(f"{made.path}: {made.architecture} of {made.format}, weights {made.key} ({made.checkpoint})")
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if made.format == "transformers" and "Video" not in made.architecture:  # their processors need torchvision
        typer.echo(f"evaluate it: diptych evaluate hf:{made.path} --data …")


def _onnx(
    address: str,
    out: Path | None,
    checkpoint: str,
    precision: str,
    data: str,
    check: bool,
    runtime: str,
    threads: int,
    json_: bool,
) -> None:
    from diptych.benchmarks.statistics import paired_test
    from diptych.cli.results import print_json
    from diptych.core.errors import DiptychError, nearest
    from diptych.core.extras import need
    from diptych.inference.onnx.runtime import ENGINES

    if runtime not in ENGINES:
        raise DiptychError(f"--runtime {runtime}{nearest(runtime, ENGINES)}; valid: {', '.join(ENGINES)}")
    for package in ("onnx", "onnxruntime"):
        need(package, extra="onnx", what="--to onnx")
    from diptych.inference.onnx.certificate import Refused
    from diptych.inference.onnx.export import check_onnx, export_onnx

    try:
        if check:
            made = check_onnx(Path(address), paired_test, data, runtime, threads)  # type: ignore[arg-type]
        else:
            made = export_onnx(address, paired_test, out, precision, data, runtime, threads, checkpoint)  # type: ignore[arg-type]
    except Refused as refused:
        if not json_:
            _show(refused.certificate)
        raise
    if json_:
        print_json({"path": str(made.path), "key": made.key, "notes": list(made.notes), **_facts(made)})
        return
    _show(made.certificate)
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    size = sum(p.stat().st_size for p in made.path.glob("*.onnx")) / 1e6
    typer.echo(f"{made.path}: {made.certificate.precision}, {size:.1f} MB, key {made.key}; the certificate is passed")
    typer.echo(f"use it: diptych evaluate {made.path} --data …")


def _facts(made: ExportedOnnx) -> dict[str, object]:
    from dataclasses import asdict

    found = made.certificate
    worst = {side: asdict(found.worst(side)) for side in ("image", "text")}
    return {"worst": worst, "recall": [asdict(r) for r in found.recall], "latency": [asdict(t) for t in found.latency]}


def _show(found: Certificate) -> None:
    """The certificate as tables."""
    from rich.console import Console
    from rich.table import Table

    from diptych.inference.onnx.certificate import BOUNDS

    console, bounds = Console(), BOUNDS[found.precision]

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        """One table; the first column holds names."""
        table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    worst = [found.worst(side) for side in ("image", "text")]
    rows = [
        [
            *(r.side, str(r.n), f"{r.largest:.2g}", f"{r.mean:.2g}", f"{r.cosine_least:.7g}", f"{r.cosine_mean:.7g}"),
            f"{found.together[r.side]:.2g}" if r.side in found.together else "—",
        ]
        for r in worst
    ]
    rows.append(["allowed", "", f"{bounds.largest:g}", "", f"{bounds.least:g}", f"{bounds.mean:g}", f"{bounds.together:g}"])
    columns = ["vectors", "n", "largest difference", "mean", "least cosine", "mean cosine", "alone / in a batch"]
    show(f"{found.precision} by {found.runtime}, against torch in fp32", columns, rows)
    if found.recall:
        rows = [
            [f"{r.direction} @{r.k}", f"{r.torch:.3f}", f"{r.onnx:.3f}", f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]"]
            for r in found.recall
        ]
        show(f"recall, {found.recall[0].n} pictures of {found.data}", ["", "torch", "ONNX", "difference [95 %]"], rows)
    if found.latency:
        rows = [
            [f"{t.side}, {t.batch} at a time", t.of, f"{t.p50:.1f}", f"{t.p95:.1f}", f"{t.p99:.1f}", str(t.calls)]
            for t in found.latency
        ]
        show(f"milliseconds a call, threads: {found.about['threads']}", ["", "", "p50", "p95", "p99", "calls"], rows)
    for failure in found.failures:
        console.print(f"not kept: {failure}", markup=False, highlight=False, soft_wrap=True)
