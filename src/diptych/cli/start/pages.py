"""Which page of the docs an error belongs to: by the module that raised it."""

from __future__ import annotations

# The longest prefix of the module counts. A helper's own module (core, config.typed …) does not: its caller's does.
PAGES = {
    "diptych.benchmarks": "evaluation.md",
    "diptych.benchmarks.regions": "regions.md",
    "diptych.choose": "choosing.md",
    "diptych.cli.choose": "choosing.md",
    "diptych.cli.hub": "exporting.md#on-a-model-hub",
    "diptych.cli.index": "search.md",
    "diptych.cli.metrics": "metrics.md",
    "diptych.cli.models.explain": "maps.md",
    "diptych.cli.models.predict": "predicting.md",
    "diptych.cli.report": "report.md",
    "diptych.comparison": "runs.md",
    "diptych.config": "recipes.md",
    "diptych.curation": "curation.md",
    "diptych.data": "data.md",
    "diptych.data.provenance": "exporting.md#model-cards-and-data-sheets",
    "diptych.data.video": "video.md",
    "diptych.data.videos": "video.md",
    "diptych.data.regions": "regions.md",
    "diptych.index": "search.md",
    "diptych.index.stores": "stores.md",
    "diptych.inference.export": "exporting.md",
    "diptych.inference.foreign": "evaluation.md",
    "diptych.inference.hub": "exporting.md#on-a-model-hub",
    "diptych.inference.maps": "maps.md",
    "diptych.inference.onnx": "onnx.md",
    "diptych.inference.predict": "predicting.md",
    "diptych.interop": "exporting.md#what-can-be-exported",
    "diptych.models": "recipes.md",
    "diptych.models.adapters": "adapters.md",
    "diptych.objectives": "recipes.md",
    "diptych.plan": "planning.md",
    "diptych.report": "report.md",
    "diptych.serve": "serving.md",
    "diptych.study": "studies.md",
    "diptych.training": "runs.md",
}


def page_of(error: BaseException) -> str:
    """The page, with a place on it where there is one, such as ``exporting.md#on-a-model-hub``; "" if no module has one."""
    modules, trace = [], error.__traceback__
    while trace is not None:
        modules.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    for module in reversed(modules):  # the one that raised it first
        parts = module.split(".")
        for length in range(len(parts), 1, -1):
            if page := PAGES.get(".".join(parts[:length])):
                return page
    return ""
