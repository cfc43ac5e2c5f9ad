"""Words of texts as features (TF-IDF): in NumPy and, word by word the same, as nodes of the graph.

The graph has no node that lowers letters on every machine (StringNormalizer needs a locale that may not be there):
the spellings that training saw of a term are listed, and each counts as the term.
"""

import string
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from activities.compute.features.categories import Coded, coded
from activities.compute.features.goals import SURE, Goal
from activities.compute.features.graph import Graph
from activities.compute.features.inputs import Matrix, Terms

MOST_TERMS = 2000
CELLS = 100_000_000
"""Of terms times rows: the features are kept as they are, zeros too."""
SAMPLE_ROWS = 200_000
"""Texts that terms are chosen from."""
LEAST_WORDS = 3.0
"""Words that a text has on average; shorter ones are names or codes."""
LEAST_TEXTS = 10
MOST_SHARE = 0.5
"""A term that is in more of the texts says little."""
MOST_SPELLINGS = 8
OPSET = 20
"""Of a graph with `StringSplit`."""
TRIMMED = string.punctuation + string.whitespace


def words(text: str) -> list[str]:
    """What stands between blanks, as `StringSplit` does it."""
    return [word for word in text.split(" ") if word]


def counted(entry: Terms, column: NDArray[np.generic] | Coded) -> Matrix:
    """How often each term is in each text, times its weight: float32 [rows, terms]."""
    texts = coded(column)
    place = dict(entry.spellings)
    found = np.zeros((len(texts.values), len(entry.terms)), np.float32)
    for row, text in enumerate(texts.texts()):
        for word in words(text):
            if (term := place.get(word)) is not None:
                found[row, term] += 1
    return (found * np.array(entry.weights, np.float32))[texts.places]


def counted_in_graph(graph: Graph, entry: Terms) -> str:
    """`counted`. A lone point is put behind each text, so that none is without a word; it is no term."""
    flat = graph.add("Reshape", entry.column, graph.constant([-1], np.int64))
    ended = graph.add("StringConcat", flat, graph.text(" ."))
    split = graph.add("StringSplit", ended, outputs=[graph.free(f"everloop:{part}{len(graph.nodes)}") for part in "wn"])
    counts = graph.add(
        "TfIdfVectorizer",
        split,
        mode="TF",
        min_gram_length=1,
        max_gram_length=1,
        max_skip_count=0,
        ngram_counts=[0],
        ngram_indexes=[place for _, place in entry.spellings],
        pool_strings=[word.encode() for word, _ in entry.spellings],
    )
    return graph.add("Mul", counts, graph.constant([entry.weights], np.float32))


def fitted(column: str, texts: Sequence[str], goal: Goal, rows: int) -> Terms | None:
    """Terms that say something of the target, the strongest first; None where there are none.

    *texts* are a sample of *rows* rows, *goal* is the sample's.
    """
    spelled: Counter[str] = Counter()
    for text in texts:
        spelled.update(set(words(text)))
    if sum(spelled.values()) < LEAST_WORDS * len(texts):
        return None
    of_term = {word: word.strip(TRIMMED).lower() for word, count in spelled.items() if count > 1}
    there: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        for term in {of_term[word] for word in words(text) if word in of_term} - {""}:
            there[term].append(place)
    strongest = _ranked(there, goal)[: min(MOST_TERMS, max(50, CELLS // max(1, rows)))]
    if not strongest:
        return None
    place_of = {term: place for place, term in enumerate(strongest)}
    return Terms(
        column=column,
        terms=tuple(strongest),
        spellings=_spellings(spelled, of_term, place_of),
        weights=tuple(float(np.float32(1 + np.log(len(texts) / len(there[term])))) for term in strongest),
    )


def _ranked(there: dict[str, list[int]], goal: Goal) -> list[str]:
    rows, found = len(goal.values), []
    for term, places in there.items():
        if not max(LEAST_TEXTS, rows // 1000) <= len(places) <= MOST_SHARE * rows:
            continue
        sure = goal.strength(len(places), goal.sums(np.array(places)))
        if sure >= SURE:
            found.append((-round(sure, 6), term))
    return [term for _, term in sorted(found)]


def _spellings(spelled: Counter[str], of_term: dict[str, str], place_of: dict[str, int]) -> tuple[tuple[str, int], ...]:
    listed: dict[str, list[str]] = defaultdict(list)
    for word, term in sorted(of_term.items(), key=lambda item: (-spelled[item[0]], item[0])):
        if term in place_of and len(listed[term]) < MOST_SPELLINGS:
            listed[term].append(word)
    return tuple((word, place) for term, place in place_of.items() for word in listed[term])
