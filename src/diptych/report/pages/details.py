"""The long tables at the end: paired tests and every measurement."""

from __future__ import annotations

from diptych.report.columns import SIGNIFICANT, columns, interval, is_share, number, p_value
from diptych.report.drawing.marks import escape, figure, header, scroller
from diptych.report.read import Comparison, Test


def tests(comparison: Comparison) -> str:
    """The table of paired tests, HTML."""
    if not comparison.tests:
        return ""
    labels = {r.name: r.label for r in comparison.recipes}
    main = [c.key for c in columns(comparison)]
    order = {k: i for i, k in enumerate(main)}
    names = {c.key: c.name for c in columns(comparison)}
    ranked = sorted(
        comparison.tests, key=lambda t: (order.get((t.task, t.metric), len(order)), t.p_holm if t.p_holm is not None else 2)
    )
    rows = "".join(_test_row(t, labels, names.get((t.task, t.metric), f"{t.task}: {t.metric}")) for t in ranked)
    heads = "".join(header(h) for h in ("A", "B", "A − B", "p", "p, Holm")) + header("Verdict", sortable=False)
    body = f'<table class="sortable"><thead><tr>{header("Measure", first=True)}{heads}</tr></thead><tbody>{rows}</tbody></table>'
    known = [t.p_holm for t in comparison.tests if t.p_holm is not None]
    caption = (
        f"Paired tests on the same items: {sum(p < SIGNIFICANT for p in known)} of {len(known)} differences are significant at 5 % "
        "after Holm’s correction. Differences in points, with their 95 % interval."
    )
    inner = figure(scroller(body, "Paired tests, scrolls sideways"), caption, "wide")
    return f"<details><summary>{len(comparison.tests)} tests</summary>{inner}</details>" if len(ranked) > 12 else inner


def _test_row(t: Test, labels: dict[str, str], name: str) -> str:
    share = is_share(t.metric)
    a, b = labels.get(t.a, t.a), labels.get(t.b, t.b)
    verdict = "not significant" if t.p_holm is None or t.p_holm >= SIGNIFICANT else "significant"
    around = (
        f'<span class="ci">{number(t.low, share)} to {number(t.high, share)}</span>'
        if t.low is not None and t.high is not None
        else ""
    )
    difference = "—" if t.difference is None else f"{'+' if t.difference > 0 else ''}{number(t.difference, share)}"
    ps = "".join(f'<td class="num" data-v="{"" if p is None else p}">{p_value(p)}</td>' for p in (t.p, t.p_holm))
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(a)}</td><td>{escape(b)}</td>'
        f'<td class="num" data-v="{"" if t.difference is None else t.difference}">{difference}{around}</td>{ps}'
        f'<td class="{verdict.split()[0]}">{verdict}</td></tr>'
    )


def measurements(comparison: Comparison) -> str:
    """The table of all measurements, HTML."""
    rows = []
    for r in comparison.recipes:
        for m in r.measures.values():
            share = is_share(m.metric)
            counts = "".join(f'<td class="num">{v}</td>' for v in (m.n, m.clusters, m.ties, m.nans))
            controls = ", ".join(f"{k} {number(v, share)}" for k, v in m.controls.items())
            rows.append(
                f'<tr><th scope="row">{escape(r.label)}</th><td>{escape(m.task)}</td><td>{escape(m.metric)}</td>'
                f'<td class="num" data-v="{m.value:.6g}">{number(m.value, share)}</td><td class="num">{interval(m, share)}</td>'
                f'<td class="num">{number(m.chance, share) if m.chance is not None else "—"}</td><td>{escape(controls)}</td>'
                f"{counts}</tr>"
            )
    if not rows:
        return ""
    heads = header("Recipe", first=True) + "".join(header(h) for h in ("Task", "Metric", "Value"))
    heads += "".join(header(h, sortable=False) for h in ("Interval", "Chance", "Controls", "n", "Clusters", "Ties", "NaNs"))
    body = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    caption = "Shares in per cent, other metrics in their own units. Ties and NaNs are summed over seeds."
    inner = figure(scroller(body, "Every measurement, scrolls sideways"), caption, "wide")
    return f"<details><summary>{len(rows)} measurements, with controls, counts and ties</summary>{inner}</details>"
