"""What a text reader alone reads of single words, by the height of the print and the size of the picture that it gets.

    python -m bench.readers                       # rapidocr, 96 and 48 pixels, 20 words of each height
    python -m bench.readers --reader mypackage.mymodule:MyReader --sizes 96 64 32

What a reader does not read, its line in a prompt (``lumos``) cannot say: this is the ceiling of reading by a prompt.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from diptych.benchmarks.answers.questions import question_record
from diptych.benchmarks.reading.read import PrintQuestion, Read, table
from diptych.data.ocr import open_prompt, ordered
from diptych.data.sources import open_source

DATA = "scenes:text?signs=1&notes=0&numbers=0&split=test"  # one word a picture, so that the reader's text is the answer


def questions(n: int) -> list[PrintQuestion]:
    """n pictures of each height of print, with what their one text says."""
    chosen: dict[int, dict[str, PrintQuestion]] = defaultdict(dict)
    for q in Read(n=150 * n, kinds=("sign", "label")).items(open_source(DATA)):
        if len(chosen[q.height]) < n:
            chosen[q.height].setdefault(q.cluster, q)
    return [q for height in sorted(chosen) for q in chosen[height].values()]


def main() -> None:
    """Prints the table of accuracy against height of print, and the processor time a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", default="rapidocr")
    parser.add_argument("--side", type=int, default=288, help="of rapidocr: smaller pictures are enlarged to so many pixels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 48], help="pixels of the picture that the reader gets")
    parser.add_argument("--n", type=int, default=20, help="words of each height")
    given = parser.parse_args()
    options = {"side": given.side} if given.reader == "rapidocr" else {}
    prompt = open_prompt({"kind": given.reader, **options})
    assert prompt is not None
    task = Read()
    found: dict[str, list[Any]] = {f"{size} px": [] for size in given.sizes}
    asked = questions(given.n)
    start = time.process_time()
    for q in asked:
        for size in given.sizes:
            shown = np.asarray(Image.fromarray(q.image).resize((size, size), Image.Resampling.BOX))  # type: ignore[arg-type]
            answer = " ".join(line.text for line in ordered(prompt.reader.read(shown))).lower()
            found[f"{size} px"].append(task.with_credits({**question_record(q), "answer": answer, "height": q.height}))
    spent = (time.process_time() - start) / (len(asked) * len(given.sizes))
    print(table(found), flush=True)
    print(f"{len(asked)} pictures; {spent:.2f} s of one core a picture")


if __name__ == "__main__":
    main()
