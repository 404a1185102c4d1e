"""Which answers the passages support: what is confused most often, in several languages, and what never is grounded."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.rag import Passage
from server.tasks.rag.abstention import TEXTS, abstains, abstention, language_of
from server.tasks.rag.grounding import is_grounded
from server.tasks.rag.scanner import terms_of
from server.tasks.rag.statements import MAX_STATEMENTS, statements_of
from server.tasks.rag.terms import alike


def passage(text: str, title: str = "") -> Passage:
    return Passage("id", title, text, 0.7, "", {}, 0, len(text))


EVEREST = passage(
    "It is 8,848 m high. Edmund Hillary and Tenzing Norgay climbed it in 1953.",
    "Mount Everest",
)
LAMPS = (
    passage("The Orion 5 lamp draws 9 W and lasts 15,000 hours. It can be dimmed.", "Orion 5"),
    passage("The Orion 7 lamp draws 14 W. It cannot be dimmed. The warranty lasts two years.", "Orion 7"),
    passage(
        "# Lamps\n| Lamp | Weight (g) | Rank | Price |\n| --- | --- | --- | --- |\n"
        "| Orion 5 | 80 | 3 | 12 EUR |\n| Orion 7 | 95 | 1 | 19 EUR |\n| Vega | 210 | 2 | 48 EUR |",
        "Lamps",
    ),
)
SHELL = passage(
    "The prefix `@` denotes a file, the prefix `%` denotes a folder. Exit code 3 means that the key is wrong. "
    "Exit code 4 means that the disk is full. The R5 came in March 2024, the R3 in May 2022.",
    "Shell reference",
)
LIGHT_YEAR = passage(
    "A light-year is a unit of length and is equal to 9.46 trillion kilometres. It is the distance that light travels "
    "in a year. Photons move at the speed of light.",
    "Light-year",
)
RIVER = passage("The river is 184 km long. It freezes in winter.\n\n# Lake Orla\nIts depth is 88 m.", "River Selva")
ENGINES = (
    passage("青河 A1 发动机的功率为 90 千瓦，重量为 120 公斤。A1 不能使用柴油。", "青河 A1"),
    passage("青河 B2 发动机的功率为 150 千瓦，重量为 180 公斤。红灯表示过热，黄灯表示缺油。", "青河 B2"),
)
HEIGHT, HAMMER = "How high is Mount Everest?", "Wie schwer ist der Hammer Thor 3?"
HAMMERS = passage("# Hammer Thor 3\nEr wiegt 900 g.\n\n# Hammer Thor 6\nEr wiegt 1,4 kg und ist 3 Jahre alt.", "Hämmer")


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (HEIGHT, "Mount Everest is 8,848 m high.", True),
        (HEIGHT, "It is 8848 metres high.", True),
        (HEIGHT, "Mount Everest is 8,611 m high.", False),
        (HEIGHT, "Mount Everest is 8,848 ft high.", False),
        (HEIGHT, "Mount Everest is high.", False),
        (HEIGHT, "", False),
        ("Who climbed it first?", "Edmund Hillary and Tenzing Norgay were the climbers, in 1953.", True),
        ("Who climbed it first?", "Reinhold Messner climbed it without oxygen.", False),
        ("Did Hillary climb Everest in 1953?", "Yes, Hillary climbed Everest in 1953.", True),
        ("Who is the mayor of Everest?", "The mayor of Everest is Christopher Smith.", False),
    ],
)
def test_one_passage(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, [EVEREST]) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How much does the Orion 5 draw?", "The Orion 5 draws 9 W.", True),
        ("How much does the Orion 5 draw?", "The Orion 5 draws 14 W.", False),
        ("How much does the Orion 7 draw?", "It draws 14 watts.", True),
        ("How much does the Orion 7 draw?", "It draws 9 W.", False),
        ("How much does the Orion 9 draw?", "The Orion 9 draws 14 W.", False),
        ("How long is the warranty of the Orion 5?", "The warranty lasts two years.", False),
        ("How long is the warranty of the Orion 7?", "The warranty lasts two years.", True),
        ("Can the Orion 7 be dimmed?", "Yes, the Orion 7 can be dimmed.", False),
        ("Can the Orion 7 be dimmed?", "No, the Orion 7 cannot be dimmed.", True),
        ("Can the Orion 5 be dimmed?", "Yes, it can be dimmed.", True),
        ("What is the rank of Vega?", "The rank of Vega is 2.", True),
        ("What is the rank of Vega?", "The rank of Vega is 1.", False),
        ("What is the rank of Vega?", "The rank of Vega is 210.", False),
        ("What is the rank of the Orion 5?", "Its rank is 3.", True),
        ("Which lamp is second in rank?", "Vega is second in rank.", True),
        ("Which lamp is second in rank?", "The Orion 7 is second in rank.", False),
        ("How heavy is the Orion 7?", "The Orion 7 weighs 95 g.", True),
        ("How heavy is the Orion 7?", "The Orion 7 weighs 95 kg.", False),
        ("How heavy is the Orion 7?", "The Orion 7 weighs 80 g.", False),
        ("What does Vega cost?", "Vega costs 48 euros.", True),
        ("What does Vega cost?", "Vega costs 48 dollars.", False),
        ("What does Vega cost?", "Vega costs 19 EUR.", False),
    ],
)
def test_products_of_one_collection(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, LAMPS) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Which prefix denotes a file?", "The prefix `@` denotes a file.", True),
        ("Which prefix denotes a file?", "The prefix denotes a file.", False),
        ("Which prefix denotes a file?", "The prefix that denotes a file is the prefix of a file.", False),
        ("What does exit code 4 mean?", "Exit code 4 means that the disk is full.", True),
        ("What does exit code 4 mean?", "Exit code 4 means that the key is wrong.", False),
        ("What does exit code 5 mean?", "Exit code 5 means that the disk is full.", False),
        ("When did the R3 come?", "The R3 came in May 2022.", True),
        ("When did the R3 come?", "The R3 came in March 2024.", False),
        ("When did the R4 come?", "The R4 came in May 2022.", False),
    ],
)
def test_sentences_side_by_side(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, [SHELL]) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How long is a light year?", "A light-year is 9.46 trillion kilometres.", True),
        ("What is the speed of light?", "The speed of light is 9.46 trillion kilometres.", False),
        ("How heavy is a light year?", "A light year is 9.46 trillion kilometres.", False),
        ("How deep is Lake Orla?", "Lake Orla is 88 m deep.", True),
        ("How deep is the River Selva?", "The River Selva is 88 m deep.", False),
        ("How long is the River Selva?", "The Selva is 184 kilometers long.", True),
        ("How long is the River Selva?", "The Selva is 184 m long.", False),
    ],
)
def test_subjects_and_units(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, [LIGHT_YEAR, RIVER]) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("青河 A1 的功率是多少？", "青河 A1 的功率是 90 千瓦。", True),
        ("青河 A1 的功率是多少？", "青河 A1 的功率是 150 千瓦。", False),
        ("青河 A1 的功率是多少？", "青河 A1 的功率是 90 公斤。", False),
        ("青河 C3 的功率是多少？", "青河 C3 的功率是 90 千瓦。", False),
        ("B2 的红灯表示什么？", "红灯表示过热。", True),
        ("B2 的红灯表示什么？", "红灯表示缺油。", False),
        ("A1 能使用柴油吗？", "能，A1 能使用柴油。", False),
        ("A1 能使用柴油吗？", "A1 不能使用柴油。", True),
        ("青河 B2 有多重？", "青河 B2 的重量是 180 公斤。", True),
    ],
)
def test_chinese(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, ENGINES) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (HAMMER, "Der Hammer Thor 3 wiegt 900 g.", True),
        (HAMMER, "Der Hammer Thor 3 wiegt 1,4 kg.", False),
        (HAMMER, "Er wiegt 900 Gramm.", True),
        (HAMMER, "Er wiegt 900 kg.", False),
        ("Wie alt ist der Hammer Thor 3?", "Der Hammer Thor 3 ist 3 Jahre alt.", False),
        ("Wie alt ist der Hammer Thor 6?", "Der Hammer Thor 6 ist 3 Jahre alt.", True),
    ],
)
def test_german_headings(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, [HAMMERS]) is expected


TRANSFERS = """queue_size
----------

**Default** - ``1000``

The number of tasks that wait. A larger queue takes more memory.

style
-----

**Default** - ``auto``

How the bucket is named::

    queue_size = 5000
    style = path
"""
CODES = """These are the return codes:

* ``0`` -- There were no errors.
* ``130`` -- The process received SIGINT.
* ``255`` -- The command failed.

The valid values of the ``output`` variable are:

* json
* table
"""
VARIABLES = """
========= ========== ================ ==================
Variable  Option     Environment      Description
========= ========== ================ ==================
region    --region   PELICAN_REGION   Default region
bundle    --ca-file  PELICAN_CA       Certificate bundle
========= ========== ================ ==================

The config file is ``~/.pelican/config``. The credentials file is ``~/.pelican/keys``, which must not be shared.

A green lamp means that a transfer runs. A red lamp means that the network is away. ``strict`` controls whether unknown
keys are refused. The default is true.
"""
REFERENCE = (
    passage(TRANSFERS, "Pelican transfers"),
    passage(CODES, "Pelican return codes"),
    passage(VARIABLES, "Pelican variables"),
)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is the default of queue_size?", "The default of queue_size is 1000.", True),
        ("What is the default of queue_size?", "The default of queue_size is 5000.", False),
        ("What is the default of style?", "The default style is auto.", True),
        ("What is the default of style?", "The default style is path.", False),
        ("What does return code 130 mean?", "Return code 130 means that the process received SIGINT.", True),
        ("What does return code 130 mean?", "Return code 130 means that the command failed.", False),
        ("What does return code 3 mean?", "Return code 3 means that the command failed.", False),
        ("What are the valid values of output?", "The valid values of output are json and table.", True),
        ("Which environment variable sets the region?", "PELICAN_REGION sets the region.", True),
        ("Which environment variable sets the region?", "PELICAN_CA sets the region.", False),
        ("Which option sets the certificate bundle?", "The option --ca-file sets it.", True),
        ("Which option sets the certificate bundle?", "The option --region sets it.", False),
        ("Where is the config file?", "The config file is ~/.pelican/config.", True),
        ("Where is the config file?", "The config file is ~/.pelican/keys.", False),
        ("May the credentials file be shared?", "Yes, the credentials file may be shared.", False),
        ("What does a green lamp mean?", "A green lamp means that a transfer runs.", True),
        ("What does a green lamp mean?", "A green lamp means that the network is away.", False),
        ("What is the default of strict?", "The default of strict is true.", True),
        ("What is the default of strict?", "The default of strict is false.", False),
    ],
)
def test_reference_documentation(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, REFERENCE) is expected


TOWN = (
    passage("Harlow Library opens at 9 am. Members may borrow 12 books for 21 days.", "Harlow Library"),
    passage("Winton Library opens at 10 am. Members may borrow 8 books for 14 days.", "Winton Library"),
    passage("Dr. Alice Moor founded it in 1911. Her successor, Peter Lang, built the dome in 1934.", "Observatory"),
    passage(
        "Aspirin: adults take 500 mg, at most 4 g a day. Children under 12 must not take it.\n\n"
        "Ibuprofen: adults take 200 mg, at most 1.2 g a day.",
        "Medicines",
    ),
    passage("K2, also known as Godwin-Austen, is 8,611 m (28,251 ft) high. K3 is 7,946 m high.", "Karakoram"),
    passage("Flag | Meaning\n--- | ---\nR | read\nW | write", "Permissions"),
    passage(
        "| 线路 | 首班车 | 末班车 |\n| --- | --- | --- |\n| 一号线 | 5:30 | 23:00 |\n| 二号线 | 6:00 | 22:30 |", "地铁"
    ),
)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How many books may members of Winton borrow?", "Members may borrow 8 books.", True),
        ("How many books may members of Winton borrow?", "Members may borrow 12 books.", False),
        ("How many books may members of Winton borrow?", "Members may borrow 14 books.", False),
        ("Who built the dome?", "Peter Lang built the dome.", True),
        ("Who built the dome?", "Alice Moor built the dome.", False),
        ("Who founded the observatory?", "Alice Moor founded the observatory.", True),
        ("Who founded the observatory?", "Peter Lang founded the observatory.", False),
        ("How much aspirin do adults take?", "Adults take 500 mg of aspirin.", True),
        ("How much aspirin do adults take?", "Adults take 200 mg of aspirin.", False),
        ("How much ibuprofen do adults take at most in a day?", "They take 4 g a day.", False),
        ("May children under 12 take aspirin?", "No, children under 12 must not take aspirin.", True),
        ("May children under 12 take aspirin?", "Yes, children under 12 may take aspirin.", False),
        ("How high is K2?", "K2 is 8,611 metres (28,251 feet) high.", True),
        ("How high is K2?", "K2 is 7,946 m high.", False),
        ("Which flag means write?", "The flag W means write.", True),
        ("Which flag means write?", "The flag R means write.", False),
        ("二号线的首班车是几点？", "二号线的首班车是 6:00。", True),
        ("二号线的首班车是几点？", "二号线的首班车是 22:30。", False),
    ],
)
def test_values_side_by_side(question: str, answer: str, expected: bool) -> None:
    assert is_grounded(answer, question, TOWN) is expected


names = st.text(string.ascii_uppercase, min_size=2, max_size=3).map(lambda letters: f"Z{letters}")
models = st.integers(2, 99).map(str)
catalogues = st.dictionaries(
    st.tuples(names, models).map("".join), st.integers(100, 9999), min_size=2, max_size=6
).filter(lambda values: len(set(values.values())) == len(values))


def in_prose(values: dict[str, int]) -> list[Passage]:
    return [passage(f"The {name} is a pump. It draws {watts} W.", f"{name} manual") for name, watts in values.items()]


def in_a_table(values: dict[str, int]) -> list[Passage]:
    rows = "\n".join(f"| {name} | {watts} W |" for name, watts in values.items())
    return [passage(f"| Pump | Power |\n| --- | --- |\n{rows}", "Pumps")]


def in_a_sentence(values: dict[str, int]) -> list[Passage]:
    return [passage(", ".join(f"the {name} draws {watts} W" for name, watts in values.items()) + ".", "Pumps")]


@pytest.mark.parametrize("write", [in_prose, in_a_table, in_a_sentence])
@given(values=catalogues)
@settings(max_examples=40, deadline=None)
def test_a_value_belongs_to_its_product(write, values: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    passages = write(values)
    for name in values:
        for other, watts in values.items():
            answer = f"The {name} draws {watts} W."
            assert is_grounded(answer, f"How much power does the {name} draw?", passages) is (other == name)


@given(number=st.integers(2, 10**9), unit=st.sampled_from(["m", "kg", "W", "s", "EUR", "MB", "°C", "%", "公斤", ""]))
@settings(max_examples=40, deadline=None)
def test_a_number_that_no_passage_has_is_never_grounded(number: int, unit: str) -> None:
    known = {reading for p in (*LAMPS, SHELL, EVEREST) for n in terms_of(p.text).numbers for reading in n.readings}
    answer = f"The Orion 5 has {number} {unit}."
    if str(number) not in known:
        assert not is_grounded(answer, "What does the Orion 5 have?", [*LAMPS, SHELL, EVEREST])


@given(
    st.sampled_from(["Which prefix denotes a file?", HEIGHT, "How heavy is the Orion 7?", "青河 A1 的功率是多少？"]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_an_answer_of_the_questions_words_is_never_grounded(question: str, data: st.DataObject) -> None:
    words = re.findall(r"\w+", question)
    answer = " ".join(data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=12)))
    assert not is_grounded(f"{answer}.", question, [*LAMPS, SHELL, EVEREST, *ENGINES])


@given(st.text(max_size=80), st.text(max_size=80), st.lists(st.text(max_size=120), max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_text_can_be_judged(answer: str, question: str, texts: list[str]) -> None:
    is_grounded(answer, question, [passage(text, text[:20]) for text in texts])
    abstains(answer)


@pytest.mark.parametrize("piece", ["。", "- a\n", "a\n\n", "a. ", "| a |\n", "A1 5 km "])
def test_no_passage_has_more_statements_than_can_be_judged(piece: str) -> None:
    assert len(list(statements_of(passage(piece * 900)))) <= MAX_STATEMENTS


@pytest.mark.parametrize(
    "answer",
    [
        "The passages do not contain the answer.",
        "The context doesn't mention how high Mount Everest is.",
        "I don't know.",
        "I'm sorry, but I do not have enough information.",
        "The provided passages don't say which port is used.",
        "There is no information about the warranty in the text.",
        "The warranty is not mentioned in the passages.",
        "This cannot be determined from the passages.",
        "None of the passages mention a battery.",
        "Die Passagen enthalten keine Antwort.",
        "Das weiß ich nicht.",
        "Les passages ne mentionnent pas le prix.",
        "Je ne sais pas.",
        "Los pasajes no mencionan el precio.",
        "No lo sé.",
        "文中没有提到价格。",
        "段落未說明保固期。",
        "我不知道。",
        "無法回答這個問題。",
        "本文には記載されていません。",
        "わかりません。",
        "지문에 언급되어 있지 않습니다.",
        "알 수 없습니다.",
        *TEXTS.values(),
    ],
)
def test_what_a_model_says_that_does_not_know(answer: str) -> None:
    assert abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The R2 does not support VLANs.",
        "No, the context object does not contain keys.",
        "The file does not contain a header.",
        "The documentation is in the folder docs.",
        "The pump must not run dry.",
        "Der Text darf nicht länger als 80 Zeichen sein.",
        "Le document ne doit pas être plié.",
        "El texto no puede superar 80 caracteres.",
        "A100 不能在没有水的情况下运行。",
        "文件不能大于 4 MB。",
        "タイマーはありません。",
        "리모컨이 없습니다.",
    ],
)
def test_what_denies_without_abstaining(answer: str) -> None:
    assert not abstains(answer)


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("How high is it?", "en"),
        ("Was kostet ein Zug nach Hamburg?", "de"),
        ("Wie hoch ist der Berg?", "de"),
        ("Quelle est la hauteur de la tour ?", "fr"),
        ("Combien coûte le four ?", "fr"),
        ("¿Cuánto pesa?", "es"),
        ("cuanto pesa la bicicleta", "es"),
        ("水泵有多重？", "zh-Hans"),
        ("这个多少钱？", "zh-Hans"),
        ("這個多少錢？", "zh-Hant"),
        ("博物館的票價是多少？", "zh-Hant"),
        ("重さはどれくらいですか？", "ja"),
        ("무게는 얼마입니까?", "ko"),
    ],
)
def test_the_questions_language(question: str, language: str) -> None:
    assert language_of(question) == language
    assert abstention(question) == TEXTS[language]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("weighs", "weight", True),
        ("install", "installation", True),
        ("painted", "painting", True),
        ("fan", "fans", True),
        ("adult", "adulthood", True),
        ("internal", "internet", False),
        ("interval", "internal", False),
        ("fan", "fancy", False),
    ],
)
def test_endings(one: str, other: str, expected: bool) -> None:
    assert alike(one, other) is alike(other, one) is expected
