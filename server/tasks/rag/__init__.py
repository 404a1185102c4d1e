"""Retrieval-augmented answers: documents into collections, searching them, answers from what is found.

Imports domain, models, inference and vectorstore; service.py and convert.py alone know the contract.
Read first: service.py, ingest.py (documents to vectors in a collection), engine.py (searching, administration).

Passage     a piece of a document that the embedder reads whole
Ingester    splits and embeds documents, and writes them to a collection
Answerer    puts passages before a question and asks a language model
Grounded    the words of an answer are in the passages that it was made from
"""
