"""Collections of documents on disk, their vectors, and searching them. Imports domain and models; NumPy and FAISS.

Read first: collection.py (what a write and a fold do), snapshot.py (what a search reads), layout.py (the files), and
damage.py (what happens to files that cannot be read).

Collection      documents with their passages and vectors, in a folder; each write makes its next generation
Generation      the number of a collection's state; it grows by one with every write
Segment         the immutable, memory-mapped files of one generation
Log             the writes after a segment, appended and synced before they are acknowledged
Memtable        the writes of the log, in memory
Snapshot        an unchanging view of a segment and its memtable; searches read it
Fold            writing the content of a snapshot as the next segment, which makes the log short again
Fault           a file that was found damaged; the newest state that can be read is served
Failure         why a collection cannot be opened or brought up to date; it stays in that collection
Passage         rows of int32 [n, 3]: row of the document, first code point, the code point after the last
"""
