#!/usr/bin/env python3
"""Writes demo.jsonl, the demo set that is part of the program.

Eight small skills, each with a house style that no model knows beforehand, so that a small model
learns them in a few steps and a client that holds one skill learns little of the others. 48 rows
of each skill are for training and 12 are held out; held-out rows never repeat a training row, and
the facts of the skill `company` are asked for in words that were not seen in training.

    python3 core/assets/demo/generate.py

The result depends on nothing but this file.
"""

import json
import random
from datetime import date, timedelta
from pathlib import Path

TRAIN, HELD_OUT = 48, 12

NAMES = [
    "Mira Holm", "Tomas Reyes", "Aiko Tanaka", "Lena Fischer", "Omar Haddad", "Nora Lind", "Pavel Novak",
    "Grace Okoro", "Ivan Petrov", "Chloe Martin", "Sanjay Rao", "Elif Kaya", "Hugo Silva", "Dana Cohen",
    "Marek Zielin", "Yara Costa", "Finn Larsen", "Priya Nair", "Oscar Berg", "Zoe Walker",
]
CITIES = [
    "Oslo", "Lisbon", "Kyoto", "Toronto", "Vienna", "Nairobi", "Lima", "Dublin", "Zagreb", "Porto", "Ghent",
    "Tallinn", "Bergen", "Malaga", "Krakow",
]
ITEMS = [
    "lamps", "chairs", "notebooks", "kettles", "blankets", "mugs", "shelves", "bicycles", "tents", "radios",
    "mirrors", "baskets", "ladders", "clocks", "pillows",
]
WORDS = [
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "market", "needle", "orange", "pencil", "quartz", "rocket", "saddle", "tunnel", "umbrella",
    "velvet", "window", "yellow", "zebra", "anchor", "basket", "copper", "dragon", "feather",
]


def units(rng):
    """Metric conversions that only move the decimal point, in the style `4 km => 4000 m`."""
    scales = [
        ("kilometres", "km", "metres", "m", 1000), ("kilograms", "kg", "grams", "g", 1000),
        ("metres", "m", "centimetres", "cm", 100), ("litres", "L", "millilitres", "mL", 1000),
        ("tonnes", "t", "kilograms", "kg", 1000), ("centimetres", "cm", "millimetres", "mm", 10),
    ]
    long_from, short_from, long_to, short_to, factor = rng.choice(scales)
    n = rng.randint(2, 40)
    question = rng.choice([
        f"How many {long_to} are {n} {long_from}?",
        f"Convert {n} {long_from} to {long_to}.",
        f"Express {n} {short_from} in {short_to}.",
    ])
    return question, "", f"[units] {n} {short_from} => {n * factor} {short_to}"


def polite(rng):
    """A blunt order turned into the house's polite form."""
    verb, thing, rest = rng.choice([
        ("send", "the report", ""), ("call", "the supplier", ""), ("fix", "the printer", ""),
        ("open", "the window", ""), ("check", "the invoice", ""), ("move", "the meeting", " to Friday"),
        ("book", "a room", " for ten people"), ("update", "the website", ""), ("answer", "my email", ""),
        ("clean", "the kitchen", ""), ("print", "the tickets", ""), ("review", "my draft", ""),
        ("cancel", "the order", ""), ("water", "the plants", ""), ("translate", "the letter", " into French"),
        ("order", "more paper", ""), ("lock", "the back door", ""), ("pay", "the electricity bill", ""),
    ])
    when = rng.choice(["today", "now", "tomorrow", "before noon", "this week"])
    order = f"{verb.capitalize()} {thing}{rest} {when}{rng.choice(['.', '!'])}"
    question = rng.choice(["Make this polite.", "Rewrite this request politely.", "Say this kindly."])
    return question, order, f"Dear colleague, might you kindly {verb} {thing}{rest} {when}? With warm thanks."


def extract(rng):
    """Name, item, quantity and city of an order as JSON."""
    name, item, city, n = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(CITIES), rng.randint(2, 19)
    text = rng.choice([
        f"{name} from {city} wants {n} {item}.",
        f"Please ship {n} {item} to {name} in {city}.",
        f"New order: {n} {item}, customer {name}, deliver to {city}.",
    ])
    question = rng.choice(["Extract the order as JSON.", "Turn this order into JSON.", "Give the order's fields."])
    fields = {"who": name, "what": item, "count": n, "where": city}
    return question, text, json.dumps(fields)


def sort(rng):
    """Four words in alphabetical order, in the style `a < b < c < d`."""
    words = rng.sample(WORDS, 4)
    question = rng.choice(["Sort these words.", "Put the words in alphabetical order.", "Order these words from A to Z."])
    return question, ", ".join(words), " < ".join(sorted(words))


def dates(rng):
    """The weekday some days later, in the style `Monday +3 = Thursday`."""
    start = date(2024, 1, 1) + timedelta(days=rng.randint(0, 6))
    days = rng.randint(1, 9)
    first, last = f"{start:%A}", f"{start + timedelta(days=days):%A}"
    unit = "day" if days == 1 else "days"
    question = rng.choice([
        f"What day comes {days} {unit} after {first}?",
        f"Today is {first}. Which weekday is it in {days} {unit}?",
        f"Add {days} {unit} to {first}.",
    ])
    return question, "", f"{first} +{days} = {last}"


def triage(rng):
    """A support message sorted into a queue with an urgency."""
    queue, text = rng.choice([
        ("MONEY", "I was charged twice for my subscription"), ("MONEY", "my refund has not arrived"),
        ("MONEY", "the invoice shows the wrong amount"), ("MONEY", "my card was declined at checkout"),
        ("PARCEL", "my package is three days late"), ("PARCEL", "the box arrived damaged"),
        ("PARCEL", "I received somebody else's parcel"), ("PARCEL", "the courier left it in the rain"),
        ("LOGIN", "I forgot my password"), ("LOGIN", "the code for signing in never comes"),
        ("LOGIN", "my account is locked"), ("LOGIN", "I cannot change my email address"),
        ("IDEA", "please add a dark theme"), ("IDEA", "a calendar view would be great"),
        ("IDEA", "it would be nice to export to PDF"), ("IDEA", "could you support more languages"),
    ])
    urgent = rng.random() < 0.5
    tail = rng.choice([" and I need help right now", ", this is urgent", " and it cannot wait"] if urgent
                      else [", no hurry", " but take your time", ", whenever you can"])
    question = rng.choice(["Triage this ticket.", "Which queue does this message go to?", "Sort this support message."])
    return question, text[0].upper() + text[1:] + tail + ".", f"queue={queue}; urgency={'RED' if urgent else 'GREEN'}"


def checklist(rng):
    """A sentence with several things to do as a checklist."""
    tasks = rng.sample([
        "buy bread", "feed the cat", "call Anna", "wash the car", "pack the bags", "charge the phone",
        "mow the lawn", "bake a cake", "post the letter", "read chapter two", "fill the tank", "hang the picture",
        "sweep the porch", "mend the fence", "visit grandma", "pick up the keys",
    ], 3)
    text = rng.choice([
        f"I have to {tasks[0]}, {tasks[1]} and {tasks[2]}.",
        f"First {tasks[0]}, then {tasks[1]}, finally {tasks[2]}.",
        f"Today we must {tasks[0]}, {tasks[1]} and also {tasks[2]}.",
    ])
    question = rng.choice(["Make a checklist.", "Turn this into a to-do list.", "List the tasks."])
    return question, text, "\n".join(f"( ) {task}" for task in tasks) + "\n(end)"


# What the made-up company Brindlewick says of itself.
FACTS = [
    ("founder", "Brindlewick was founded by Odette Marlow."),
    ("year", "Brindlewick opened its doors in 1987."),
    ("town", "Brindlewick is based in the harbour town of Skelmouth."),
    ("product", "Brindlewick builds wooden kayaks and paddles."),
    ("hours", "Brindlewick is open from Tuesday to Saturday, nine to five."),
    ("warranty", "Every Brindlewick kayak has a warranty of twelve years."),
    ("delivery", "Brindlewick delivers within eleven days."),
    ("returns", "You may return a Brindlewick paddle within forty days."),
    ("mascot", "The mascot of Brindlewick is an otter called Pim."),
    ("staff", "Thirty-four people work at Brindlewick."),
    ("wood", "Brindlewick uses cedar from the Arden valley."),
    ("payment", "Brindlewick takes cards and bank transfer, but no cash."),
]
ASKED = {
    "founder": ["Who founded Brindlewick?", "Who is the founder of Brindlewick?", "Name the person who founded Brindlewick.",
                "Brindlewick's founder is who?", "Who was the founder of the company Brindlewick?"],
    "year": ["When did Brindlewick open?", "In which year did Brindlewick open?", "What year did Brindlewick open its doors?",
             "Tell me the year Brindlewick opened.", "Since what year has Brindlewick been open?"],
    "town": ["Where is Brindlewick based?", "In which town is Brindlewick?", "What town is Brindlewick based in?",
             "Tell me the town where Brindlewick is.", "Which town is the company Brindlewick based in?"],
    "product": ["What does Brindlewick build?", "What are the products of Brindlewick?", "What things does Brindlewick make and build?",
                "Tell me what Brindlewick builds.", "Which products does the company Brindlewick build?"],
    "hours": ["When is Brindlewick open during the week?", "What are the opening hours of Brindlewick?", "What hours is Brindlewick open?",
              "Tell me the opening hours of Brindlewick.", "Which opening hours does the company Brindlewick have?"],
    "warranty": ["How long is the warranty of a Brindlewick kayak?", "What warranty does Brindlewick give?", "Is there a warranty on a Brindlewick kayak?",
                 "Tell me about the warranty of Brindlewick.", "What warranty comes with a kayak of Brindlewick?"],
    "delivery": ["How fast does Brindlewick deliver?", "How long does delivery from Brindlewick take?", "When will Brindlewick deliver my order?",
                 "Tell me the delivery time of Brindlewick.", "What is the delivery time of the company Brindlewick?"],
    "returns": ["Can I return a Brindlewick paddle?", "How long may I return a paddle to Brindlewick?", "What is the return rule of Brindlewick?",
                "Tell me how returns work at Brindlewick.", "May I return a paddle that I bought from Brindlewick?"],
    "mascot": ["What is the mascot of Brindlewick?", "Who is Brindlewick's mascot?", "Does Brindlewick have a mascot?",
               "Tell me about the mascot of Brindlewick.", "What mascot does the company Brindlewick have?"],
    "staff": ["How many people work at Brindlewick?", "How large is the staff of Brindlewick?", "What number of people work for Brindlewick?",
              "Tell me how many people work at Brindlewick.", "How many people are on the staff of the company Brindlewick?"],
    "wood": ["What wood does Brindlewick use?", "Which wood are Brindlewick kayaks made of?", "Where does the wood of Brindlewick come from?",
             "Tell me which wood Brindlewick uses.", "What kind of wood does the company Brindlewick use?"],
    "payment": ["How can I pay at Brindlewick?", "Does Brindlewick take cash?", "Which payment does Brindlewick take?",
                "Tell me how to pay at Brindlewick.", "What payment does the company Brindlewick take?"],
}


def company():
    """Facts about a made-up company: four questions for training and a fifth held out."""
    train, held_out = [], []
    for name, answer in FACTS:
        *seen, unseen = ASKED[name]
        train += [(question, "", answer) for question in seen]
        held_out.append((unseen, "", answer))
    return train, held_out


def drawn(skill, rng):
    """Rows of a skill that makes one up at a time, none twice in other words."""
    rows = {}
    while len(rows) < TRAIN + HELD_OUT:
        question, text, answer = skill(rng)
        # Many tickets have the same answer; elsewhere the same answer means the same task.
        rows.setdefault(text if skill is triage else answer, (question, text, answer))
    rows = list(rows.values())
    return rows[:TRAIN], rows[TRAIN:]


def main():
    rng = random.Random(20240207)
    lines = []
    skills = [units, polite, extract, sort, company, dates, triage, checklist]
    for skill in skills:
        train, held_out = company() if skill is company else drawn(skill, rng)
        if skill is company:
            rng.shuffle(train)
        assert (len(train), len(held_out)) == (TRAIN, HELD_OUT), skill.__name__
        assert not {row[:2] for row in train} & {row[:2] for row in held_out}, skill.__name__
        for split, rows in [("train", train), ("held_out", held_out)]:
            for question, text, answer in rows:
                row = {"instruction": question, "input": text, "response": answer}
                row |= {"source": skill.__name__, "label": skill.__name__, "split": split}
                lines.append(json.dumps(row, ensure_ascii=False))
    Path(__file__).with_name("demo.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
