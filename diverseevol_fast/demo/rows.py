"""The data set of the quick start, made from a seed: unlike task families, some of them rare.

Diverse selection has something to find in it: words.json gives each family its weight, and a family of weight 1 has a
handful of rows out of 2,000.
"""

import json
import random
from pathlib import Path

ROWS = 2000
WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
FAMILIES: dict[str, int] = WORDS["families"]  # the name of a method of _Tasks: the family's weight

Row = tuple[str, str, str]  # instruction, input, output


def generate_rows(count: int = ROWS, seed: int = 0) -> list[dict]:
    """`count` alpaca rows, each with its task family under "family"; every family appears at least twice."""
    rng = random.Random(seed)
    chosen = list(FAMILIES) * 2
    chosen += rng.choices(list(FAMILIES), weights=list(FAMILIES.values()), k=count - len(chosen))
    rng.shuffle(chosen)
    tasks = _Tasks(rng)
    rows = []
    for family in chosen:
        instruction, text, output = getattr(tasks, family)()
        rows.append({"instruction": instruction, "input": text, "output": output, "family": family})
    return rows


class _Tasks:
    """A method for each family draws a row. The order of its draws decides which row a seed gives."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    def _word(self, kind: str) -> str:
        return self._rng.choice(WORDS[kind])

    def _pair(self, kind: str) -> tuple[str, str]:
        return self._rng.choice(list(WORDS[kind].items()))

    def _number(self, most: int = 99) -> int:
        return self._rng.randint(1, most)

    def _phrase(self, words: int) -> str:
        adjectives = [self._word("adjective") for _ in range(words - 1)]
        return " ".join([*adjectives, self._word("noun")])

    def add(self) -> Row:
        a, b = self._number(), self._number()
        return f"What is {a} plus {b}?", "", f"{a} plus {b} is {a + b}."

    def subtract(self) -> Row:
        b, a = sorted([self._number(), self._number()])
        return f"Subtract {b} from {a}.", "", f"{a} - {b} = {a - b}"

    def multiply(self) -> Row:
        a, b = self._number(12), self._number(12)
        return "Multiply the two numbers.", f"{a}, {b}", str(a * b)

    def word_problem(self) -> Row:
        name, fruit, a, b = self._word("name"), self._word("fruit"), self._number(20), self._number(20)
        question = f"{name} has {a} {fruit}s and buys {b} more. How many {fruit}s does {name} have now?"
        return question, "", f"{name} starts with {a} and buys {b}, so {name} has {a} + {b} = {a + b} {fruit}s."

    def sort(self) -> Row:
        numbers = [self._number() for _ in range(5)]
        ascending = ", ".join(map(str, sorted(numbers)))
        return "Sort these numbers in ascending order.", ", ".join(map(str, numbers)), ascending

    def largest(self) -> Row:
        numbers = [self._number(999) for _ in range(4)]
        return "Which of these numbers is the largest?", " ".join(map(str, numbers)), str(max(numbers))

    def even(self) -> Row:
        a = self._number(500)
        return f"Is {a} even or odd?", "", "odd" if a % 2 else "even"

    def sequence(self) -> Row:
        start, step = self._number(15), self._number(15)
        terms = ", ".join(str(start + i * step) for i in range(4))
        answer = f"The next number is {start + 4 * step}, because each step adds {step}."
        return f"Continue the sequence: {terms}, ...", "", answer

    def binary(self) -> Row:
        a = self._number(63)
        return f"Write {a} in binary.", "", f"{a:b}"

    def celsius(self) -> Row:
        a = self._number(40)
        answer = f"{a} x 9 / 5 + 32 = {a * 9 / 5 + 32:.1f} degrees Fahrenheit"
        return f"Convert {a} degrees Celsius to Fahrenheit.", "", answer

    def meters(self) -> Row:
        a = self._number(50)
        return f"How many meters are {a} kilometers?", "", f"{a * 1000} meters"

    def reverse(self) -> Row:
        word = self._word("noun")
        return f"Spell the word '{word}' backwards.", "", word[::-1]

    def upper(self) -> Row:
        text = self._phrase(3)
        return "Rewrite the text in capital letters.", text, text.upper()

    def vowels(self) -> Row:
        word = self._rng.choice(WORDS["noun"] + WORDS["adjective"])
        count = sum(letter in "aeiou" for letter in word)
        return f"Count the vowels in '{word}'.", "", f"There are {count} vowels in '{word}'."

    def acronym(self) -> Row:
        words = [self._word(kind).title() for kind in ("adjective", "noun", "noun")]
        return "Make an acronym of the phrase.", " ".join(words), "".join(word[0] for word in words)

    def last_word(self) -> Row:
        text = self._phrase(4)
        return "What is the last word of the text?", text, text.split()[-1]

    def count_words(self) -> Row:
        count = self._rng.randint(2, 6)
        return "How many words does the text have?", self._phrase(count), str(count)

    def capital(self) -> Row:
        country, city = self._pair("capitals")
        return f"What is the capital of {country}?", "", f"The capital of {country} is {city}."

    def antonym(self) -> Row:
        word, opposite = self._pair("antonyms")
        return f"Give the opposite of the word '{word}'.", "", opposite

    def spanish(self) -> Row:
        return "Translate the word into Spanish.", *self._pair("spanish")

    def past(self) -> Row:
        (verb, past), name = self._pair("past"), self._word("name")
        instruction = "Put the sentence into the past tense."
        return instruction, f"{name} and I {verb} together.", f"{name} and I {past} together."

    def day(self) -> Row:
        day, shift = self._rng.randrange(7), self._number(6)
        days = WORDS["day"]
        return f"Which day comes {shift} days after {days[day]}?", "", days[(day + shift) % 7]

    def category(self) -> Row:
        kind = self._rng.choice(["fruit", "tool", "animal"])
        return "Classify the item as fruit, tool or animal.", self._word(kind), kind

    def sentiment(self) -> Row:
        positive = self._rng.random() < 0.5
        noun, verdict, name = self._word("noun"), self._word("praise" if positive else "blame"), self._word("name")
        review = f"The {noun} film was {verdict} and I told {name} so."
        return "Is the review positive or negative?", review, "positive" if positive else "negative"

    def extract_name(self) -> Row:
        name = self._word("name")
        return "Who is mentioned in the text?", f"Yesterday {name} crossed the {self._phrase(2)}.", name

    def json(self) -> Row:
        name, age = self._word("name"), self._number(90)
        return "Turn the facts into JSON.", f"name: {name}; age: {age}", f'{{"name": "{name}", "age": {age}}}'

    def csv(self) -> Row:
        pairs = [(self._word("name"), self._word("noun")) for _ in range(2)]
        lines = ["person,thing"] + [f"{name},{noun}" for name, noun in pairs]
        return "Write the pairs as CSV with a header.", str(pairs), "\n".join(lines)

    def python(self) -> Row:
        name, sign = self._pair("operators")
        code = f"def {name}(a, b):\n    return a {sign} b"
        return f"Write a Python function that can {name} two numbers.", "", code

    def loop(self) -> Row:
        n = self._number(30)
        code = f"for i in range({n + 1}):\n    print(i)"
        return f"Write a Python loop that prints the numbers from 0 to {n}.", "", code

    def html(self) -> Row:
        text, tag = self._phrase(2), self._rng.choice(["h1", "p", "em", "li"])
        return f"Wrap the text in an HTML <{tag}> element.", text, f"<{tag}>{text}</{tag}>"

    def sql(self) -> Row:
        noun, n = self._word("noun"), self._number()
        query = f"SELECT * FROM {noun} WHERE price > {n};"
        return f"Write SQL for all rows of table {noun} with price above {n}.", "", query

    def email(self) -> Row:
        to, sender, topic, day = self._word("name"), self._word("name"), self._phrase(2), self._word("day")
        body = f"thank you for your note about the {topic}. I will answer by {day}."
        mail = f"Dear {to},\n\n{body}\n\nKind regards,\n{sender}"
        return f"Write a short email to {to} about the {topic}.", "", mail

    def poem(self) -> Row:
        a, b, c = self._phrase(2), self._phrase(2), self._word("noun")
        poem = f"A {a} wakes,\nbeside it a {b};\nthe {c} says nothing."
        return f"Write a three-line poem about a {c}.", "", poem

    def story(self) -> Row:
        name, thing, where, day = self._word("name"), self._phrase(2), self._word("noun"), self._word("day")
        begin = f"{name} found a {thing} near the {where}. At first nobody believed it."
        end = f"Then the {thing} began to sing, and {name} carried it home before {day}."
        return f"Tell a very short story about {name} and a {thing}.", "", f"{begin} {end}"

    def dialogue(self) -> Row:
        a, b, thing, day = self._word("name"), self._word("name"), self._word("noun"), self._word("day")
        lines = f"{a}: Have you seen the {thing}?\n{b}: Not since {day}.\n{a}: Then it is lost."
        return f"Write a dialogue between {a} and {b} about a {thing}.", "", lines

    def recipe(self) -> Row:
        fruit, n = self._word("fruit"), self._number(9)
        steps = f"1. Wash {n} {fruit}s.\n2. Cut them.\n3. Add sugar.\n4. Let them rest for {n * 5} minutes."
        return f"Give a simple recipe with {fruit}s.", "", steps

    def syllogism(self) -> Row:
        name, kind, trait = self._word("name"), self._word("noun"), self._word("adjective")
        premises = f"Every {kind} is {trait}. {name} owns a {kind}."
        return "Draw the conclusion.", premises, f"{name} owns something {trait}."
