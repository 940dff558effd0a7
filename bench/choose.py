"""Ways of adapting on three real questions, at 1 to 16 pictures a class: ``python -m bench.choose [textiles|drawings|styles] …``.

textiles: 2,000 pictures of cloth without a defect, with a local or a global one (PyPI ``conformal-clip-data``, MIT): inspection.
drawings: OpenMoji by kind (faces, flags, arrows, …). styles: objects of ``scenes:`` in plain colours, tested on natural pictures of
the same objects, which training never shows. Each with its models, five draws of the training pictures, intervals over pictures and
draws. Writes docs/choose-results.md; ``--write`` only writes it. Runs and vectors are kept in runs/bench-choose.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.harness import environment
from bench.shuffled import shuffled, summary
from diptych.api import load
from diptych.choose.run import Request, choose
from diptych.cli.choose.display import StepsDisplay
from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.files import read_json, write_text
from diptych.data.sources import open_source
from diptych.report.pages.choose import build_choose_report, percent
from diptych.training.run_files import RunFiles

RUNS = Path("runs") / "bench-choose"
PAGE = Path(__file__).parent.parent / "docs" / "choose-results.md"
SHOTS = (1, 2, 4, 8, 16)
SEEDS = 5
WAYS = (  # those that take seconds
    "zeroshot", "knn", "prototypes", "gda", "probe", "cross-modal", "clap", "taskres", "tip", "tip-f", "wise", "label-propagation",
    "tda",
)  # fmt: skip
KINDS = {  # of drawings: words of their names
    "face": ("face",), "button": ("button",), "family": ("family:", "family"), "hand": ("hand", "hands", "fist", "palm"),
    "arrow": ("arrow",), "heart": ("heart", "hearts"), "clock": ("o’clock", "o'clock", "thirty"), "flag": (), "person": ("woman", "man", "person"),
}  # fmt: skip
MOST = 80  # drawings of one kind
TITLES = {
    "textiles": "Cloth: no defect, a local one, a global one",
    "drawings": "Drawings by kind",
    "styles": "Objects in another style than in training",
}


def textiles() -> str:
    """Class folders of the pictures of cloth."""
    package = need("conformal_clip_data", extra=None, what="bench.choose textiles")
    return f"classes:{Path(package.__path__[0]) / 'data' / 'textile_images' / 'simulated'}"


def drawings() -> str:
    """A table of OpenMoji's drawings with their kind, written once."""
    folder = RUNS / "drawings"
    if not (folder / "done").is_file():
        from PIL import Image

        source, counts = open_source("openmoji:all"), dict.fromkeys(KINDS, 0)
        for i in range(len(source)):
            sample = source[i]
            kind = kind_of(sample.captions[0], sample.id)
            if kind and counts[kind] < MOST and sample.image is not None:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample.image).save(folder / kind / f"{sample.id}.png")
                counts[kind] += 1
        write_text(folder / "done", json.dumps(counts))
    return f"classes:{folder}"


def kind_of(name: str, code: str) -> str | None:
    """The kind of a drawing by its name, or by its code for flags; None for others."""
    if code.startswith("1F1") and "-" in code:
        return "flag"
    words = name.lower().split()
    last = [kind for kind, known in KINDS.items() if words[-1] in known]
    first = [kind for kind in ("person", "family") if words[0].rstrip(":") in (*KINDS[kind], kind)]
    return next(iter(first or last), None)


def data_of(name: str) -> tuple[str, str | None]:
    """The address of the pictures to learn from, and of those to test on if they are elsewhere."""
    if name == "styles":
        return "scenes:small", "scenes:small?natural=0.9"
    return (textiles() if name == "textiles" else drawings()), None


def run(name: str, models: list[str]) -> None:
    """Runs what is missing of one question."""
    data, test = data_of(name)
    request = Request(tuple(models), WAYS, data, SHOTS, SEEDS, test_data=test)
    folder = RUNS / name
    with StepsDisplay() as display:
        choose(request, folder / "results", load, display)
    build_choose_report(folder / "results", read_json(folder / "results" / "results.json"))


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page with a table of each question: accuracy at each number of pictures."""
    where = environment()
    lines = [
        "# Which way of adapting, measured", "", "`python -m bench.choose`", "",
        "Test accuracy in per cent, mean over five draws of the training pictures; in brackets the 95 % interval over pictures and draws at the most pictures. "
        f"Settings were chosen by cross-validation on the training pictures. Rows are in the order of cross-validation. {where['hardware']}; {where['software']}.",
    ]  # fmt: skip
    for name, results in found.items():
        data, made = results["data"], results["environment"]
        lines += ["", f"## {TITLES[name]}", ""]
        lines.append(
            f"{data['train']:,} pictures to draw from, {data['test']:,} to test, {len(data['classes'])} classes. {made['date'][:10]}."
        )
        lines += [
            "",
            "| model | way | " + " | ".join(map(str, SHOTS)) + " | new classes, in one list |",
            "|---|---|" + "---:|" * (len(SHOTS) + 1),
        ]
        tested = [c for c in results["cells"] if c.get("test")]
        for row in results["verdict"]["rows"]:
            own = [c for c in tested if (c["model"], c["way"]) == (row["model"], row["way"])]
            values = [percent(_mean([c["test"]["accuracy"] for c in own if c["shots"] == k])) for k in SHOTS]
            values[-1] += f" [{percent(row['low'])}–{percent(row['high'])}]" if row["low"] is not None else ""
            new = percent(_mean([c["test"].get("new_joint") for c in own if c["shots"] == SHOTS[-1]]))
            lines.append("| " + " | ".join([short(row["model"]), f"`{row['way']}`", *values, new]) + " |")
        lines += [""]
        for sentence in results["sentences"]:
            for address in results["request"]["models"]:
                sentence = sentence.replace(address, short(address).strip("`"))
            lines += [sentence, ""]
        lines += [f"- {note}" for note in data["notes"]]
        lines += [f"- {run}" for address in results["request"]["models"] if (run := trained(address))]
    return "\n".join(lines) + "\n"


def trained(address: str) -> str:
    """How a run was trained; "" for another model."""
    run = RunFiles(Path(address))
    if not run.exists():
        return ""
    recipe = run.recipe()
    return f'{short(address)}: `diptych train {recipe.name} --data {recipe.data.train} --budget "{recipe.budget}"`'


def short(address: str) -> str:
    """A model's address without the folders above it."""
    return f"`{Path(address).name if '/' in address and ':' not in address else address}`"


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def main() -> int:
    """Runs and writes the page. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.choose", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", default=list(TITLES), help=", ".join(TITLES))
    parser.add_argument("--models", default="conse", help="comma-separated addresses, such as conse,runs/clip for styles")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--shuffled", type=int, metavar="SEEDS", help="instead: all ways on shuffled labels (bench/shuffled.py)")
    given = parser.parse_args()
    if given.shuffled:
        print(summary(shuffled(given.shuffled, RUNS / "shuffled.jsonl")))
        return 0
    for name in [] if given.write else given.questions:
        if name not in TITLES:
            raise DiptychError(f"there is no question '{name}'; there are {', '.join(TITLES)}")
        run(name, given.models.split(","))
    found = {n: read_json(p) for n in TITLES if (p := RUNS / n / "results" / "results.json").is_file()}
    write_text(PAGE, page(found))
    print(f"written: {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DiptychError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
