"""Whether passages support an answer, by its words and numbers: cheap, and without a model.

An answer is grounded if one statement of a passage (a sentence, a table row, a list item) carries each of its sentences
that tell something new: the statement has the new words, names and numbers, with the same units; it, or what stands
above it, is about what the question names; and it affirms or denies as the answer does. A wrong answer in the words of
the right statement is not detected. docs/notes/grounding.md has the rules with examples, and figures.
"""

import re
from collections.abc import Sequence

from server.domain.rag import Passage
from server.tasks.rag import clauses
from server.tasks.rag.abstention import language_of
from server.tasks.rag.scanner import pairs_of, terms_of
from server.tasks.rag.statements import Statement, statements_of
from server.tasks.rag.terms import Number, Terms
from server.tasks.rag.vocabulary import (
    ASKED_DIMENSIONS,
    ATTRIBUTE_OF,
    ATTRIBUTES,
    DIMENSION,
    ORDINAL,
    QUESTION_WORDS,
    SUPERLATIVE,
    YES_OR_NO,
)

# Shares of words (of characters in Chinese, Japanese and Korean), chosen on the development half of `make eval`.
MIN_NEWS = 0.7  # of the answer's new words must be in the statement,
MIN_NEWS_BESIDE_NUMBERS = 0.5  # or fewer if there are new numbers or names, which must all be in it
MIN_SUBJECT = 0.6  # of the question's words must be in the statement or above it,
MIN_SUBJECT_ELSE = 0.75  # or more if some new words are not,
MIN_SUBJECT_OF_VERDICT = 0.85  # or if the answer only affirms or denies,
MIN_HEADING = 0.75  # and more of those that a heading of any passage has: they name a subject
_PARAPHRASED = 0.5  # how much a word of the question counts that no passage has: another word may stand for it
_MAX_CODE_POINTS = 10_000  # of an answer; a model that is asked for two sentences and writes more is not quoting
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-zà-ÿ\s])|(?<=[。！？])\s*")


def is_grounded(answer: str, question: str, passages: Sequence[Passage]) -> bool:
    """Whether a statement carries every sentence of the answer that tells more than the question, and there is one.

    `answer` must not be an abstention.
    """
    if len(answer) > _MAX_CODE_POINTS:
        return False
    asked = _Question(question, [statement for passage in passages for statement in statements_of(passage)])
    judged = [asked.judge(sentence) for sentence in _SENTENCE.split(answer) if sentence.strip()]
    return any(judged) and False not in judged


class _Question:
    """A question with the statements that could answer it."""

    def __init__(self, text: str, statements: Sequence[Statement]) -> None:
        self.text = text
        self.statements = statements
        words = re.findall(r"[^\W\d_]{2,}", text)
        is_title = sum(word[0].isupper() for word in words) > 0.7 * len(words)
        self.capitals_name = not is_title and language_of(text) != "de"  # which capitalises every noun
        self.terms = terms_of(text, capitals_name=self.capitals_name)
        self.pairs = pairs_of(text)
        self.superlatives = {match.group().casefold() for match in SUPERLATIVE.finditer(text)}
        self.attributes = set(ATTRIBUTES & self.terms.words)
        if match := ATTRIBUTE_OF.search(text):
            self.attributes |= terms_of(match[1].split()[-1]).words
        self.dimensions = {
            dimension
            for pattern, dimensions in ASKED_DIMENSIONS
            if pattern.search(text)
            for dimension in dimensions.split()
        }
        headings = {heading for s in statements for heading in (*s.context.headings, s.key) if heading}
        self.headings = [named for named in map(self._named_in, headings) if named.size]
        asked = self.terms.words | self.terms.characters
        self.known_anywhere = {word for word in asked if any(s.all.knows(word) for s in statements)}
        self.symbols_anywhere = {symbol for statement in statements for symbol in statement.all.symbols}

    def judge(self, sentence: str) -> bool | None:
        """Whether a statement carries the sentence; None if it tells nothing new."""
        said = terms_of(sentence, capitals_name=self.capitals_name)
        news = said.without(self.terms)
        is_verdict = bool(YES_OR_NO.match(sentence)) or not QUESTION_WORDS.search(self.text)
        if not (news.size or news.numbers or news.symbols or is_verdict):
            return None
        measured = {DIMENSION.get(number.unit, "") for number in news.numbers if number.unit}
        if self.dimensions and measured and not self.dimensions & measured:
            return False
        return any(self._carries(statement, sentence, news) for statement in self.statements)

    def _carries(self, statement: Statement, sentence: str, news: Terms) -> bool:
        min_news = MIN_NEWS_BESIDE_NUMBERS if news.numbers or news.names else MIN_NEWS
        share = news.share_in(statement.all)
        min_subject = MIN_SUBJECT if share == 1.0 else MIN_SUBJECT_ELSE
        if not (news.size or news.numbers or news.symbols):
            min_subject = MIN_SUBJECT_OF_VERDICT
        return (
            all(map(statement.terms.has, news.numbers))
            and news.symbols <= statement.terms.symbols
            and all(map(statement.told.knows, news.names))
            and share >= min_news
            and not any(_is_enough(part.terms, news) for part in statement.parts)
            and self._is_about_subject(statement, min_subject)
            and (self._is_row(statement, news) if statement.cells else self._is_clause(statement, news))
            and clauses.modify_same(statement, self.terms, self.pairs, self.known_anywhere)
            and clauses.agree(statement, sentence, self.text, self.terms, news)
        )

    def _is_about_subject(self, statement: Statement, min_share: float) -> bool:
        """Whether the statement, with what stands above it, is about what the question names."""
        known = statement.all
        if not (
            all(map(known.knows, self.terms.names))
            and self.terms.symbols & self.symbols_anywhere <= known.symbols
            and all(_is_designated(number, known) for number in self.terms.numbers)
            and all(map(statement.terms.knows, self.superlatives))
            and all(map(known.knows, self.attributes & self.known_anywhere))
            and all(named.share_in(known) >= MIN_HEADING for named in self.headings)
        ):
            return False
        for match in ORDINAL.finditer(statement.text):
            if self.terms.knows(match["word"].casefold()) and match["ordinal"].casefold() not in self.text.casefold():
                return False
        words = self.terms.words | self.terms.characters
        missing = {word for word in words if not known.knows(word)}
        elsewhere = {word for word in words - missing if not statement.told.knows(word)}
        if statement.context.refers and elsewhere and not any(map(statement.terms.knows, words)):
            return False  # what the question asks stands in the sentence before
        weight = sum(1 if word in self.known_anywhere else _PARAPHRASED for word in missing)
        found = len(words) - len(missing)
        return found >= min_share * (found + weight)

    def _named_in(self, text: str) -> Terms:
        """The question's words that a text has."""
        terms = terms_of(text)
        return Terms(set(filter(self.terms.knows, terms.words)), terms.characters & self.terms.characters)

    def _is_row(self, row: Statement, news: Terms) -> bool:
        """Whether the question or the answer names the row, and new numbers are in columns that the question names."""
        if not (self._named_in(row.key).size or clauses.carries(terms_of(row.key), news)):
            return False
        shares = [terms_of(cell.column).share_in(self.terms) if cell.column else 0.0 for cell in row.cells[1:]]
        best = max(shares, default=0.0)
        columns = [terms_of(cell.text) for cell, share in zip(row.cells[1:], shares, strict=True) if share == best]
        readings = {reading for column in columns for number in column.numbers for reading in number.readings}
        return best == 0.0 or all(number.readings & readings for number in news.numbers)

    def _is_clause(self, statement: Statement, news: Terms) -> bool:
        return (
            clauses.count_same(statement, news)
            and clauses.name_subject(statement, self.terms, news)
            and clauses.are_nearest(statement, self.terms, news)
        )


def _is_enough(terms: Terms, news: Terms) -> bool:
    """Whether one sentence of a pair has all the news: then it must carry them alone."""
    return all(map(terms.has, news.numbers)) and news.share_in(terms) >= MIN_NEWS


def _is_designated(number: Number, terms: Terms) -> bool:
    """Whether a number of the question ("code 7", "at 20 °C") is in the terms, and not as that of another thing."""
    if number.unit:
        return terms.has(number)
    bare = [other for other in terms.numbers if not other.has_unit]
    same_word = [other for other in bare if number.before and other.before == number.before]
    return any(number.readings & other.readings for other in same_word or bare)
