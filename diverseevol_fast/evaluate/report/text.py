"""The words of a report: what came out, what the runs are, and how to read the figures."""

from collections.abc import Callable, Sequence

from .metrics import HELD_OUT_GROUPS_LOSS, VALIDATION_LOSS, Block
from .page import Html, element, join, table
from .sections import meaning
from .seeds import Record, strategy
from .verdict import verdict

INTRODUCTION = (
    "Each run chose, round by round, the rows of an instruction data set that a language model is fine-tuned on. Round "
    "0 trains on rows drawn at random; every later round adds rows by the run's strategy and trains a fresh copy of "
    "the base model on the larger pool."
)
GUIDE = {
    VALIDATION_LOSS: "Mean cross-entropy of a response token, in nats, over rows that were never in the pool; lower is "
    "better. Those rows are drawn from the same data set: the loss says how well the pool stands for that data set, "
    "not how well the model answers other questions. Models with different tokenizers do not compare.",
    HELD_OUT_GROUPS_LOSS: "The same over rows of kinds that the run's settings keep out of every pool.",
    "Relative Score": "100 x the sum of the model's scores / the sum of the reference's, over all questions and both "
    "orders of showing the answers, as a judge model rates them; above 100 is better than the reference answers. The "
    "sums are pooled, which is not the mean of the questions' ratios. A judge has preferences of its own, for length "
    "among others.",
    "Intervals": "Of one run: 95%, by resampling the questions of a Relative Score, or the rows of a loss; they know "
    "nothing of what another seed would give. Of several seeds: the 95% interval of Student's t for their mean, which "
    "is wide for few seeds (4.3 standard errors to each side for 3). Intervals that overlap do not show that there is "
    "no difference.",
    "Best and last round": "Among many rounds one is the best by chance alone. Who wants to use the best round chooses "
    "it on one set of rows or questions, and reports it on another.",
    "Random subsets": "As many rows, drawn from the same candidates. ▲ marks a pool that is more diverse than each of "
    "them, ▼ one that is less; of several seeds, where that holds for the pool of every one. A random pool, too, is "
    "beyond all of 5 on one side once in six times. The measures change with the pool's size, so a round is compared "
    "with random subsets of its size, not with the round before. Diverse is not the same as good: whether it helps is "
    "what the loss and the Relative Score say.",
    "The space of the measures": "The fixed model embeds the rows' own words without the training template: its "
    "preamble is one of two, with and without an input, and would be most of what the measures see. The mean of all "
    "candidates is subtracted, without which all cosines are alike; distances stay as they are. The figures of "
    "`diverseevol diversity` are others: it measures the embeddings of the training texts, not centred, as DiverseEvol "
    "does.",
    "The plane of the picks": "Two directions out of hundreds: rows that lie side by side in it may be far apart. How "
    "much of the variance each shows stands at its axis. All charts of one data set show one plane, to one scale.",
    "Distances of the picks": "Euclidean, not squared. “By the run” is what the strategy saw when it picked the row, "
    "in embeddings that it alone has; “by the fixed model” is the distance to the row shown, which of the pool at that "
    "moment is the nearest.",
}


def summary(blocks: Sequence[Block]) -> Html:
    """What came out, in words: the first thing on the page."""
    sentences = [element("li", sentence) for sentence in verdict(blocks)]
    return element("section", element("h2", "Verdict", id="verdict"), element("ul", *sentences), class_="verdict")


def runs_section(blocks: Sequence[Block]) -> Html:
    """What the runs are."""
    runs = [(block, record) for block in blocks for line in block.lines for record in line.records]
    rows = [[name, *_shared([read(*one) for one in runs])] for name, read in FACTS.items()]
    names = ["", *(record.name for _, record in runs)]
    return join([element("p", INTRODUCTION), table("Settings of the runs.", names, rows, "facts")])


def reading_section(blocks: Sequence[Block]) -> Html:
    """What the figures mean, and what they do not say."""
    measures = blocks[0].lines[0].records[0].diversity["measures"]
    entries = GUIDE | {entry["title"]: meaning(entry) for entry in measures.values()}
    return element("dl", *(join([element("dt", term), element("dd", words)]) for term, words in entries.items()))


def _shared(cells: list[object]) -> list[object]:
    """One cell across all columns where all say the same."""
    return [element("td", cells[0], colspan=str(len(cells)))] if len(set(cells)) == 1 else cells


def _rows(_: Block, record: Record) -> str:
    config = record.run.config
    return f"{len(record.run.data.rows):,}; {len(record.picked.points):,} candidates, {config.val_set_size:,} held out"


def _pool(_: Block, record: Record) -> str:
    config = record.run.config
    return f"{config.init_label_num:,} + {config.n_round} rounds x {config.n_query:,}"


def _versions(_: Block, record: Record) -> str:
    versions = record.run.state.manifest(record.run.rounds - 1)["versions"]
    return ", ".join(f"{name} {version}" for name, version in versions.items())


FACTS: dict[str, Callable[[Block, Record], object]] = {
    "strategy": lambda _, record: strategy(record.run),
    "data set": lambda block, _: block.title,
    "rows": _rows,
    "base model": lambda _, record: record.run.config.model_name_or_path,
    "pool": _pool,
    "finished": lambda _, record: f"{record.run.rounds} of {record.run.config.n_round + 1} rounds, counted from 0",
    "seed": lambda _, record: record.run.config.seed,
    "fixed model of the measures": lambda _, record: record.diversity["model"],
    "versions": _versions,
}
