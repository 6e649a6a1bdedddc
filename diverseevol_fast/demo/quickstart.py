"""What the quick start needs, made here from seeds, no download: an instruction data set, a tokenizer, a small Llama.

The data set mixes unlike task families, some of them rare, so that diverse selection has something to find.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = 2000
SEED = 0
VOCABULARY = 4096

NAMES = [
    "Ada",
    "Ben",
    "Chloe",
    "Dmitri",
    "Elena",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Liam",
    "Mara",
    "Noor",
    "Omar",
    "Petra",
]
NOUNS = [
    "river",
    "engine",
    "garden",
    "window",
    "candle",
    "market",
    "bridge",
    "teacher",
    "violin",
    "planet",
    "basket",
    "harbor",
    "lantern",
    "forest",
]
ADJECTIVES = [
    "quiet",
    "bright",
    "heavy",
    "ancient",
    "gentle",
    "curious",
    "distant",
    "hollow",
    "steady",
    "golden",
    "narrow",
    "fearless",
]
FRUITS, TOOLS, ANIMALS = (
    ["apple", "mango", "pear", "plum", "fig"],
    ["hammer", "saw", "drill", "wrench"],
    ["otter", "hawk", "mole", "carp"],
)
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Egypt": "Cairo",
            "Canada": "Ottawa", "Chile": "Santiago", "Vietnam": "Hanoi", "Poland": "Warsaw"}  # fmt: skip
ANTONYMS = {"hot": "cold", "early": "late", "rise": "fall", "empty": "full", "strong": "weak", "brave": "timid",
            "narrow": "wide", "ancient": "modern", "silent": "noisy", "rough": "smooth"}  # fmt: skip
SPANISH = {"house": "casa", "water": "agua", "bread": "pan", "night": "noche", "friend": "amigo", "red": "rojo",
           "book": "libro", "street": "calle", "sun": "sol", "hand": "mano", "milk": "leche"}  # fmt: skip
PAST = {"go": "went", "see": "saw", "take": "took", "write": "wrote", "begin": "began", "drive": "drove",
        "break": "broke", "choose": "chose", "swim": "swam", "teach": "taught", "find": "found"}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
GOOD, BAD = ["delightful", "superb", "charming", "moving"], ["tedious", "clumsy", "dreadful", "hollow"]

Row = tuple[str, str, str]  # instruction, input, output


def _numbers(rng: random.Random, count: int, high: int = 99) -> list[int]:
    return [rng.randint(1, high) for _ in range(count)]


def _phrase(rng: random.Random, words: int = 3) -> str:
    return " ".join(rng.choice(ADJECTIVES if place + 1 < words else NOUNS) for place in range(words))


def _add(rng: random.Random) -> Row:
    a, b = _numbers(rng, 2)
    return f"What is {a} plus {b}?", "", f"{a} plus {b} is {a + b}."


def _subtract(rng: random.Random) -> Row:
    a, b = sorted(_numbers(rng, 2), reverse=True)
    return f"Subtract {b} from {a}.", "", f"{a} - {b} = {a - b}"


def _multiply(rng: random.Random) -> Row:
    a, b = _numbers(rng, 2, 12)
    return "Multiply the two numbers.", f"{a}, {b}", str(a * b)


def _word_problem(rng: random.Random) -> Row:
    name, fruit, (a, b) = rng.choice(NAMES), rng.choice(FRUITS), _numbers(rng, 2, 20)
    question = f"{name} has {a} {fruit}s and buys {b} more. How many {fruit}s does {name} have now?"
    return question, "", f"{name} starts with {a} and buys {b}, so {name} has {a} + {b} = {a + b} {fruit}s."


def _sort(rng: random.Random) -> Row:
    numbers = _numbers(rng, 5)
    return (
        "Sort these numbers in ascending order.",
        ", ".join(map(str, numbers)),
        ", ".join(map(str, sorted(numbers))),
    )


def _largest(rng: random.Random) -> Row:
    numbers = _numbers(rng, 4, 999)
    return "Which of these numbers is the largest?", " ".join(map(str, numbers)), str(max(numbers))


def _even(rng: random.Random) -> Row:
    (a,) = _numbers(rng, 1, 500)
    return f"Is {a} even or odd?", "", "even" if a % 2 == 0 else "odd"


def _sequence(rng: random.Random) -> Row:
    start, step = _numbers(rng, 2, 15)
    shown = ", ".join(str(start + i * step) for i in range(4))
    return (
        f"Continue the sequence: {shown}, ...",
        "",
        f"The next number is {start + 4 * step}, because each step adds {step}.",
    )


def _binary(rng: random.Random) -> Row:
    (a,) = _numbers(rng, 1, 63)
    return f"Write {a} in binary.", "", bin(a)[2:]


def _celsius(rng: random.Random) -> Row:
    (a,) = _numbers(rng, 1, 40)
    return (
        f"Convert {a} degrees Celsius to Fahrenheit.",
        "",
        f"{a} x 9 / 5 + 32 = {a * 9 / 5 + 32:.1f} degrees Fahrenheit",
    )


def _meters(rng: random.Random) -> Row:
    (a,) = _numbers(rng, 1, 50)
    return f"How many meters are {a} kilometers?", "", f"{a * 1000} meters"


def _reverse(rng: random.Random) -> Row:
    word = rng.choice(NOUNS)
    return f"Spell the word '{word}' backwards.", "", word[::-1]


def _upper(rng: random.Random) -> Row:
    text = _phrase(rng)
    return "Rewrite the text in capital letters.", text, text.upper()


def _vowels(rng: random.Random) -> Row:
    word = rng.choice(NOUNS + ADJECTIVES)
    return (
        f"Count the vowels in '{word}'.",
        "",
        f"There are {sum(letter in 'aeiou' for letter in word)} vowels in '{word}'.",
    )


def _acronym(rng: random.Random) -> Row:
    words = [rng.choice(ADJECTIVES).title(), rng.choice(NOUNS).title(), rng.choice(NOUNS).title()]
    return "Make an acronym of the phrase.", " ".join(words), "".join(word[0] for word in words)


def _last_word(rng: random.Random) -> Row:
    text = _phrase(rng, 4)
    return "What is the last word of the text?", text, text.split()[-1]


def _count_words(rng: random.Random) -> Row:
    text = _phrase(rng, rng.randint(2, 6))
    return "How many words does the text have?", text, str(len(text.split()))


def _capital(rng: random.Random) -> Row:
    country = rng.choice(list(CAPITALS))
    return f"What is the capital of {country}?", "", f"The capital of {country} is {CAPITALS[country]}."


def _antonym(rng: random.Random) -> Row:
    word = rng.choice(list(ANTONYMS))
    return f"Give the opposite of the word '{word}'.", "", ANTONYMS[word]


def _spanish(rng: random.Random) -> Row:
    word = rng.choice(list(SPANISH))
    return "Translate the word into Spanish.", word, SPANISH[word]


def _past(rng: random.Random) -> Row:
    verb, name = rng.choice(list(PAST)), rng.choice(NAMES)
    return (
        "Put the sentence into the past tense.",
        f"{name} and I {verb} together.",
        f"{name} and I {PAST[verb]} together.",
    )


def _day(rng: random.Random) -> Row:
    day, shift = rng.randrange(7), rng.randint(1, 6)
    return f"Which day comes {shift} days after {DAYS[day]}?", "", DAYS[(day + shift) % 7]


def _category(rng: random.Random) -> Row:
    kind, items = rng.choice([("fruit", FRUITS), ("tool", TOOLS), ("animal", ANIMALS)])
    return "Classify the item as fruit, tool or animal.", rng.choice(items), kind


def _sentiment(rng: random.Random) -> Row:
    positive = rng.random() < 0.5
    review = (
        f"The {rng.choice(NOUNS)} film was {rng.choice(GOOD if positive else BAD)} and I told {rng.choice(NAMES)} so."
    )
    return "Is the review positive or negative?", review, "positive" if positive else "negative"


def _extract_name(rng: random.Random) -> Row:
    name = rng.choice(NAMES)
    return "Who is mentioned in the text?", f"Yesterday {name} crossed the {_phrase(rng, 2)}.", name


def _json(rng: random.Random) -> Row:
    name, (age,) = rng.choice(NAMES), _numbers(rng, 1, 90)
    return "Turn the facts into JSON.", f"name: {name}; age: {age}", f'{{"name": "{name}", "age": {age}}}'


def _csv(rng: random.Random) -> Row:
    rows = [(rng.choice(NAMES), rng.choice(NOUNS)) for _ in range(2)]
    return (
        "Write the pairs as CSV with a header.",
        str(rows),
        "person,thing\n" + "\n".join(",".join(row) for row in rows),
    )


def _python(rng: random.Random) -> Row:
    name, sign = rng.choice([("add", "+"), ("subtract", "-"), ("multiply", "*"), ("divide", "/")])
    code = f"def {name}(a, b):\n    return a {sign} b"
    return f"Write a Python function that can {name} two numbers.", "", code


def _loop(rng: random.Random) -> Row:
    (n,) = _numbers(rng, 1, 30)
    return (
        f"Write a Python loop that prints the numbers from 0 to {n}.",
        "",
        f"for i in range({n + 1}):\n    print(i)",
    )


def _html(rng: random.Random) -> Row:
    text, tag = _phrase(rng, 2), rng.choice(["h1", "p", "em", "li"])
    return f"Wrap the text in an HTML <{tag}> element.", text, f"<{tag}>{text}</{tag}>"


def _sql(rng: random.Random) -> Row:
    noun, (n,) = rng.choice(NOUNS), _numbers(rng, 1)
    return (
        f"Write SQL for all rows of table {noun} with price above {n}.",
        "",
        f"SELECT * FROM {noun} WHERE price > {n};",
    )


def _email(rng: random.Random) -> Row:
    to, sender, topic, day = rng.choice(NAMES), rng.choice(NAMES), _phrase(rng, 2), rng.choice(DAYS)
    body = (
        f"Dear {to},\n\nthank you for your note about the {topic}. I will answer by {day}.\n\nKind regards,\n{sender}"
    )
    return f"Write a short email to {to} about the {topic}.", "", body


def _poem(rng: random.Random) -> Row:
    a, b, c = _phrase(rng, 2), _phrase(rng, 2), rng.choice(NOUNS)
    return (
        f"Write a three-line poem about a {c}.",
        "",
        f"A {a} wakes,\nbeside it a {b};\nthe {c} says nothing.",
    )


def _story(rng: random.Random) -> Row:
    name, thing, place = rng.choice(NAMES), _phrase(rng, 2), rng.choice(NOUNS)
    text = (f"{name} found a {thing} near the {place}. At first nobody believed it. "
            f"Then the {thing} began to sing, and {name} carried it home before {rng.choice(DAYS)}.")  # fmt: skip
    return f"Tell a very short story about {name} and a {thing}.", "", text


def _dialogue(rng: random.Random) -> Row:
    a, b, thing = rng.choice(NAMES), rng.choice(NAMES), rng.choice(NOUNS)
    return f"Write a dialogue between {a} and {b} about a {thing}.", "", (
        f"{a}: Have you seen the {thing}?\n{b}: Not since {rng.choice(DAYS)}.\n{a}: Then it is lost.")  # fmt: skip


def _recipe(rng: random.Random) -> Row:
    fruit, (n,) = rng.choice(FRUITS), _numbers(rng, 1, 9)
    return f"Give a simple recipe with {fruit}s.", "", (
        f"1. Wash {n} {fruit}s.\n2. Cut them.\n3. Add sugar.\n4. Let them rest for {n * 5} minutes.")  # fmt: skip


def _syllogism(rng: random.Random) -> Row:
    name, kind, trait = rng.choice(NAMES), rng.choice(NOUNS), rng.choice(ADJECTIVES)
    return (
        "Draw the conclusion.",
        f"Every {kind} is {trait}. {name} owns a {kind}.",
        f"{name} owns something {trait}.",
    )


# Family and weight: a weight of 1 is rare, a handful of rows out of 2,000.
FAMILIES: list[tuple[Callable[[random.Random], Row], int]] = [
    (_add, 90), (_subtract, 60), (_multiply, 50), (_word_problem, 60), (_sort, 40), (_largest, 30), (_even, 50),
    (_sequence, 20), (_binary, 8), (_celsius, 6), (_meters, 12), (_reverse, 20), (_upper, 20), (_vowels, 15),
    (_acronym, 6), (_last_word, 12), (_count_words, 10), (_capital, 40), (_antonym, 30), (_spanish, 25), (_past, 15),
    (_day, 15), (_category, 30), (_sentiment, 40), (_extract_name, 25), (_json, 4), (_csv, 2), (_python, 6), (_loop, 3),
    (_html, 3), (_sql, 2), (_email, 4), (_poem, 2), (_story, 3), (_dialogue, 1), (_recipe, 1), (_syllogism, 3),
]  # fmt: skip


def generate_rows(count: int = ROWS, seed: int = SEED) -> list[dict]:
    """`count` alpaca rows, each with its task family under "family"; every family appears at least twice."""
    rng = random.Random(seed)
    families, weights = zip(*FAMILIES, strict=True)
    chosen = list(families) * 2
    chosen += rng.choices(families, weights=weights, k=count - len(chosen))
    rng.shuffle(chosen)
    rows = []
    for family in chosen:
        instruction, given, output = family(rng)
        rows.append({"instruction": instruction, "input": given, "output": output, "family": family.__name__[1:]})
    return rows


def train_tokenizer(texts: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, with <pad>, <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def build_small_llama(texts: list[str], folder: Path, seed: int) -> None:
    """Save a byte-level BPE tokenizer trained on `texts` and a small Llama with seeded random weights.

    4 layers, width 192, about 2.5 million parameters, in float32 safetensors: enough to see a loss fall.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts, VOCABULARY)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
