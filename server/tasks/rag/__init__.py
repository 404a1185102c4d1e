"""Retrieval-augmented answers: documents into collections, searching them, answers from what is found.

Imports domain, models, inference and vectorstore; service.py and convert.py alone know the contract.
Read first: service.py, ingest.py (documents to vectors in a collection), engine.py (searching, administration).

Passage     a piece of a document that the embedder reads whole
Ingester    splits and embeds documents, and writes them to a collection
Reindexer   embeds all documents of a collection again, in the background; calls observe it
Answerer    puts passages before a question and asks a language model
Statement   a sentence, table row or list item of a passage, with what stands above it
News        what an answer tells more than its question
Grounded    a statement of the passages carries the news of an answer
Abstained   the answer says that there is none
"""
