"""Makes and changes a persistent directory of ChromaDB. usage: chroma.py make|change DIRECTORY VECTORS DIMENSIONS (with a Python that has chromadb)

make: one collection; each vector with a document of some sentences and metadata. change: 1 % of them get another vector and document."""
import random
import sys

import chromadb
import numpy
from chromadb.config import Settings

verb, path, count, dimensions = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
WORDS = """order invoice shipment customer returned payment address approved warehouse pending delivery refund product quantity discount account balance
transfer received reference contract meeting report question answer search result summary chapter section paragraph model vector index memory""".split()
rng = numpy.random.default_rng(1 if verb == "make" else 2)
text = random.Random(1 if verb == "make" else 2)
collection = chromadb.PersistentClient(path=path, settings=Settings(anonymized_telemetry=False)).get_or_create_collection("bench", embedding_function=None)


def upsert(numbers):
    vectors = rng.standard_normal((len(numbers), dimensions), dtype=numpy.float32)
    collection.upsert(ids=["document-%d" % n for n in numbers], embeddings=vectors,
                      documents=[" ".join(text.choices(WORDS, k=text.randrange(20, 60))) for _ in numbers],
                      metadatas=[{"page": n % 300, "source": "file-%d.pdf" % (n // 300)} for n in numbers])


numbers = list(range(count)) if verb == "make" else sorted(text.sample(range(count), count // 100))
for at in range(0, len(numbers), 1000):
    upsert(numbers[at:at + 1000])
