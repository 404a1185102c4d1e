"""AnalysisService: entities, key phrases, sentences, syntax, sentiment, topics and language of a text.

The engines may import domain, models and inference; service.py and it alone also rpc and the contract.

Read first: service.py (contract to domain and back), analyzer.py (the tasks of a call, concurrently),
spacy_parser.py with spacy_process.py (the child process that parses).

Part: a computation that serves one or more tasks of an analysis; one parse serves four.
"""
