"""The clauses of a statement: which of them tells the news, and whether another fits the question better.

"The R5 came in 2024, the R3 in 2022" carries "The R3 came in 2022" and not "The R3 came in 2024".
"""

import re

from server.tasks.rag.scanner import pairs_of, terms_of
from server.tasks.rag.statements import Statement
from server.tasks.rag.terms import Terms, alike, has_digit
from server.tasks.rag.vocabulary import FUNCTION_WORDS, NEGATION, YES_OR_NO

_BETWEEN = (
    r"[,;:，；：、]\s|\s\(|（|）|\s[–—-]\s|[，；：、]|\.\s|[。！？]|\b(?:but|while|whereas|aber|mais|pero|sino)\b|但"
)
_CLAUSE = re.compile(_BETWEEN)
_PART = re.compile(rf"{_BETWEEN}|\b(?:and|or|und|oder|et|ou|y|o)\b|和")


def carries(clause: Terms, news: Terms) -> bool:
    """Whether the clause has some of the news."""
    return news_in(clause, news) > 0


def news_in(clause: Terms, news: Terms) -> int:
    """How much of the news the clause has: of its numbers if there are any, or else of its words."""
    if news.numbers:
        return sum(map(clause.has, news.numbers))
    return sum(map(clause.knows, news.words)) + len(clause.characters & news.characters)


def count_same(statement: Statement, news: Terms) -> bool:
    """Whether numbers count in the statement what they count in the answer ("206 bones")."""
    counts = [n for n in news.numbers if n.counted and not n.unit and n.counted not in FUNCTION_WORDS]
    parts = [terms_of(part) for part in _PART.split(statement.text)] if counts else []
    return all(
        any(
            part.knows(number.counted)
            and any(number.readings & other.readings for other in part.numbers if not other.unit)
            for part in parts
        )
        for number in counts
    )


def name_subject(statement: Statement, asked: Terms, news: Terms) -> bool:
    """Whether the clauses with the news are about a name of the question, in a statement that has several names."""
    stated = set(filter(statement.terms.knows, asked.names))
    own = stated or set(filter(has_digit, asked.names))
    by_name = any(not has_digit(name) for name in stated)
    names: set[str] = set()
    for clause in map(terms_of, _CLAUSE.split(statement.text) if own else ()):
        # If the subject stands above the statement, or is a designation, only names that look like it are other
        # subjects: R3 beside R2.
        others = {name for name in clause.names if (by_name or has_digit(name)) and not news.knows(name)}
        names = others or names  # a clause without a name is about that of the clause before
        if names and not own & names and (carries(clause, news) or any(map(clause.knows, news.names))):
            return False
    return True


def are_nearest(statement: Statement, asked: Terms, news: Terms) -> bool:
    """Whether no other clause that tells the like has more of the question.

    A later clause may leave out what an earlier one said ("12 W in operation and 3 W in standby"), but then it has
    nothing of its own that the question does not name.
    """
    parts = [terms_of(part) for part in _PART.split(statement.text) if part.strip()]
    found = [_asked_in(part, asked) for part in parts]
    amounts = [news_in(part, news) for part in parts]
    telling = [amount == max(amounts) for amount in amounts]  # a number such as 1 can be in others by chance
    units = {number.unit for number in news.numbers}
    for place, part in enumerate(parts):
        if not telling[place]:
            continue
        own = {w for w in part.words if not asked.knows(w) and not news.knows(w)}
        own |= part.characters - asked.characters - news.characters
        for other, terms in enumerate(parts):
            is_like = found[place] & found[other] or any(number.unit in units for number in terms.numbers)
            if telling[other] or not is_like or found[other] <= found[place]:
                continue
            if other > place or (own and found[place] <= found[other]):
                return False
    return True


def modify_same(statement: Statement, asked: Terms, pairs: list[tuple[str, str]], elsewhere: set[str]) -> bool:
    """Whether no word has another one before it than in the question's `pairs`: a red light is no amber light.

    Unless the passages do not have the question's word `elsewhere`: then another may stand for it.
    """
    own = statement.terms
    missing = [
        (first, word)
        for first, word in pairs
        if first in elsewhere and not (statement.all if first in asked.names else own).knows(first)
    ]
    stated = pairs_of(statement.text) if missing else []
    return not any(
        (word == other or alike(word, other)) and not asked.knows(before)
        for _, word in missing
        for before, other in stated
    )


def _asked_in(part: Terms, asked: Terms) -> set[str]:
    """The question's words, characters and numbers that are in a part of a statement."""
    numbers = {reading for number in asked.numbers if part.has(number) for reading in number.readings}
    return set(filter(part.knows, asked.words)) | (part.characters & asked.characters) | numbers


def agree(statement: Statement, sentence: str, question: str, asked: Terms, news: Terms) -> bool:
    """Whether answer and statement both affirm or both deny."""
    verdict = YES_OR_NO.match(sentence)
    if verdict and verdict["yes"]:
        return not NEGATION.search(statement.text) and not NEGATION.search(sentence)
    if verdict and (news.numbers or news.names):
        return True  # "No, only up to 40 °C."
    parts = [f"{cell.column} {cell.text}" for cell in statement.cells[1:]] or _CLAUSE.split(statement.text)
    if news.size or news.numbers:
        parts = [part for part in parts if carries(terms_of(part), news)]
    else:  # the clause that the question is about
        parts = [max(parts, key=lambda part: len(_asked_in(terms_of(part), asked)))]
    denies = bool(NEGATION.search(sentence) or NEGATION.search(question))
    return denies == any(map(NEGATION.search, parts or [statement.text]))
