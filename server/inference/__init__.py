"""What computes: models run on the scheduler's lanes, and children run in processes of their own.

May import domain, models, tenancy and the libraries of the models; never grpc, the contract or a task.

Read first: scheduler.py (lanes, admission, deadlines), queue.py (the order of requests and their batches), text.py
(classifiers and embedders on any model).

Lane: a thread that computes, one a core. Computation: what a lane runs, most often one model. Request: one caller's
items of a computation. Batch: items that run together, of one request or of several. BatchPolicy: which items may.
"""
