"""Readers of the data that artefacts are trained and measured on: Wikipedia articles, rated sentences, houses, FAQs.

May import numpy and the standard library.

Read first: wikipedia.py, sentiment.py, faq.py.
"""
