"""Which model, and which way of adapting it, for 500 pictures in class folders?

python examples/jobs/choose_for_500_pictures.py --data classes:my/parts
"""

import argparse
from pathlib import Path

import diptych as dp
from diptych.choose.run import Request, choose

if __name__ == "__main__":  # processes that are started read this file again
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="scenes:small", help="pictures with classes")
    parser.add_argument("--models", nargs="+", default=["conse"], help="runs, hf:NAME, conse")
    parser.add_argument("--ways", nargs="+", default=["zeroshot", "knn", "prototypes", "gda", "probe"])
    parser.add_argument("--shots", type=int, default=16, help="pictures of each class to learn from")
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/choose"))
    given = parser.parse_args()

    # Settings are chosen by cross-validation on the training part. The test part is opened once, at the end.
    request = Request(tuple(given.models), tuple(given.ways), given.data, shots=(given.shots,), seeds=3)
    found = choose(request, given.out, dp.load)
    for cell in sorted(found.cells, key=lambda c: -(c.get("test", {}).get("accuracy") or 0)):
        print(cell["model"], cell["way"], cell.get("seed"), cell.get("test", {}).get("accuracy"))
    print("\n".join(found.sentences))
