"""The last run of bench/results/<gpu>.jsonl as a Markdown table and a picture.

python bench/device/device_table.py FILE
"""

import argparse
from pathlib import Path

from preference import read_lines

COLORS = {"cuda": "tab:green", "triton": "tab:orange"}


def last_run(path: Path) -> list[dict]:
    """The measurements of the last run that has any."""
    lines = [line for line in read_lines(path) if line.get("what") in ("op", "kcenter", "peer")]
    return [line for line in lines if line["run"] == lines[-1]["run"]]


def launcher(line: dict) -> str:
    """What a line's contender is: "cuda" or "triton", or one of others."""
    return line["backend"].split(" ")[0].rstrip(",")


def name_of(line: dict) -> str:
    """What was computed, as a person says it."""
    sizes = " x ".join(f"{size:,}" for size in line.get("shape", []))
    where = ", rows in host memory" if line.get("host") else ""
    return f"{line['op']} {sizes} {line.get('dtype', '')}{where}".strip()


def grouped(lines: list[dict]) -> dict[str, list[dict]]:
    """Lines by what was computed."""
    groups: dict[str, list[dict]] = {}
    for line in lines:
        groups.setdefault(name_of(line), []).append(line)
    return groups


def table(lines: list[dict]) -> str:
    """All of a run as Markdown: what it ran on, and a row for each contender."""
    about = lines[-1]
    read, copy = about["read_bytes_per_second"] / 1e12, about["copy_bytes_per_second"] / 1e12
    half, single = about["bfloat16_flops"] / 1e12, about["tf32_flops"] / 1e12
    text = [
        f"**{about['device']}**, driver {about['driver']}, torch {about['torch']}, triton {about['triton']}, CUDA "
        f"{about['cuda']}, {about['date']}, commit {about['commit'][:7] or 'unknown'}",
        "",
        f"Measured in this run: read {read:.2f} TB/s, copy {copy:.2f} TB/s, products {half:.0f} TFLOP/s in bfloat16, "
        f"{single:.0f} in TF32. Roofline: the input read once, or the products at the bfloat16 rate.",
        "",
        "| what | | ms | of the roofline | TB/s | TFLOP/s | passes | extra memory | check |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in grouped(lines).items():
        text += [f"| {name} | " + " | ".join(cells(line)) + " |" for line in group]
    return "\n".join(text) + "\n"


def cells(line: dict) -> list[str]:
    """One contender's figures."""
    seconds = line.get("p50")
    if seconds is None:
        return [line["backend"], *[""] * 6, line.get("reason") or verdict(line)]
    return [
        line["backend"],
        f"{seconds * 1e3:.4g}",
        f"{line['of_roofline']:.0%}",
        f"{line['bytes'] / seconds / 1e12:.2f}",
        f"{line['flops'] / seconds / 1e12:.0f}" if "flops" in line else "",
        f"{line['passes']:.2f}" if "passes" in line else "",
        f"{line['extra_bytes'] / 1e6:.0f} MB" if "extra_bytes" in line else "",
        verdict(line),
    ]


def verdict(line: dict) -> str:
    return {True: "passed", False: "FAILED" if launcher(line) in COLORS else "differs", None: "not compared"}[
        line["passed"]
    ]


def plot(lines: list[dict], path: Path) -> None:
    """Shares of the roofline of every contender on every op and shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped([line for line in lines if "of_roofline" in line])
    figure, axis = pyplot.subplots(figsize=(9, 1.5 + 0.32 * len(groups)))
    for height, group in enumerate(groups.values()):
        for line in group:
            color = COLORS.get(launcher(line))
            axis.plot(line["of_roofline"], -height, "o" if color else "|", ms=8, color=color or "tab:gray")
    axis.set_yticks([-height for height in range(len(groups))], list(groups), fontsize=7)
    axis.set_xscale("log")
    axis.axvline(1, color="black", lw=0.8)
    axis.set_xlabel("share of the roofline: green cuda, orange triton, gray others")
    axis.set_title(f"{lines[-1]['device']}, {lines[-1]['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    lines = last_run(path)
    path.with_suffix(".md").write_text(table(lines), encoding="utf-8")
    plot(lines, path.with_suffix(".png"))
    print(f"{path.with_suffix('.md')}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
