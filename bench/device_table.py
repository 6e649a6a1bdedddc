"""The last run of bench/results/<gpu>.jsonl as a Markdown table and a picture: python bench/device_table.py FILE"""

import argparse
import json
from pathlib import Path

OURS = ("cuda", "triton")
COLOURS = {"cuda": "tab:green", "triton": "tab:orange"}


def last_run(path: Path) -> list[dict]:
    """The lines of a file that were measured in one run with its last."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("run") == lines[-1].get("run")]


def grouped(lines: list[dict]) -> dict[tuple, list[dict]]:
    """Lines by op, shape and dtype."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault((line["op"], tuple(line["shape"]), line["dtype"]), []).append(line)
    return groups


def table(lines: list[dict]) -> str:
    """All of a run as Markdown: what it ran on, and a row for each contender."""
    about = lines[-1]
    read, copy = about["read_bytes_per_second"] / 1e12, about["copy_bytes_per_second"] / 1e12
    half, single = about["bfloat16_flops"] / 1e12, about["tf32_flops"] / 1e12
    text = [
        f"**{about['device']}**, torch {about['torch']}, triton {about['triton']}, CUDA {about['cuda']}, "
        f"{about['date']}, commit {about['commit'][:7] or 'unknown'}",
        "",
        f"Measured in this run: read {read:.2f} TB/s, copy {copy:.2f} TB/s, products {half:.0f} TFLOP/s in bfloat16, "
        f"{single:.0f} in TF32. Roofline: the input read once, or the products at the bfloat16 rate.",
        "",
        "| op | shape | dtype | | ms | times roofline | TB/s | TFLOP/s | passes | extra memory | check |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (op, shape, dtype), group in grouped(lines).items():
        sizes = " x ".join(f"{size:,}" for size in shape)
        text += [f"| {op} | {sizes} | {dtype} | " + " | ".join(cells(line)) + " |" for line in group]
    return "\n".join(text) + "\n"


def cells(line: dict) -> list[str]:
    """One contender's figures."""
    seconds = line.get("p50")
    if seconds is None:
        return [line["backend"], *[""] * 6, line.get("skipped") or line.get("error") or verdict(line)]
    return [
        line["backend"],
        f"{seconds * 1e3:.4g}",
        f"{seconds / line['roofline']:.2f}",
        f"{line['bytes'] / seconds / 1e12:.2f}",
        f"{line['flops'] / seconds / 1e12:.0f}" if "flops" in line else "",
        f"{line['passes']:.2f}" if "passes" in line else "",
        f"{line['extra_bytes'] / 1e6:.0f} MB" if "extra_bytes" in line else "",
        verdict(line),
    ]


def verdict(line: dict) -> str:
    return {True: "passed", False: "FAILED" if line["backend"] in OURS else "differs", None: "not compared"}[
        line["passed"]
    ]


def plot(lines: list[dict], path: Path) -> None:
    """Times over the roofline of every contender on every op and shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [line for line in lines if "p50" in line]
    groups = grouped(timed)
    figure, axis = pyplot.subplots(figsize=(9, 1.5 + 0.32 * len(groups)))
    for height, group in enumerate(groups.values()):
        for line in group:
            mine = line["backend"] in OURS
            axis.plot(
                line["p50"] / line["roofline"], -height, "o" if mine else "|", ms=7 if mine else 9,
                color=COLOURS.get(line["backend"], "tab:gray"),
            )  # fmt: skip
    names = [f"{op} {'x'.join(str(size) for size in shape)} {dtype}" for op, shape, dtype in groups]
    axis.set_yticks([-height for height in range(len(groups))], names, fontsize=7)
    axis.set_xscale("log")
    axis.axvline(1, color="black", lw=0.8)
    axis.set_xlabel("times the roofline: green cuda, orange triton, gray others and the reference")
    axis.set_title(f"{lines[-1]['device']}, {lines[-1]['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def render(path: Path) -> str:
    """Write the table and the picture beside a file of lines; the table, and what became of the picture."""
    lines = last_run(path)
    text = table(lines)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        plot(lines, path.with_suffix(".png"))
    except ImportError as error:
        return f"{text}\n{path.with_suffix('.md')}; no picture: {error}"
    return f"{text}\n{path.with_suffix('.md')}, {path.with_suffix('.png')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    print(render(parser.parse_args().file))


if __name__ == "__main__":
    main()
