"""Works on a persistent directory of ChromaDB. usage: chroma_writer.py make|load|change DIRECTORY DIMENSIONS COUNT

make: a collection with COUNT vectors, tiny ones, and one that was deleted. change: 26 times, 1 % of the vectors get another value.
load: says "ready", then adds, changes and deletes in batches of 100, and makes and deletes small collections, until it is killed.
"""
import random
import sys

import chromadb
from chromadb.config import Settings

verb, path, dimensions, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = chromadb.PersistentClient(path=path, settings=Settings(anonymized_telemetry=False))
random.seed(count)
collection = client.get_or_create_collection("alpha", embedding_function=None)


def vector():
    return [random.gauss(0, 1) for _ in range(dimensions)]


def add(start, number):
    names = ["id%d" % i for i in range(start, start + number)]
    collection.add(ids=names, embeddings=[vector() for _ in names], metadatas=[{"n": i} for i in range(number)])


if verb == "make":
    for start in range(0, count, 500):
        add(start, min(500, count - start))
    collection.delete(ids=["id7"])
    collection.upsert(ids=["id9"], embeddings=[vector()])
    for name in ("tiny", "with_mark", "gone"):
        client.get_or_create_collection(name, embedding_function=None).add(ids=["x", "y"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
    client.create_collection("empty", embedding_function=None)
    client.delete_collection("gone")
elif verb == "change":
    # So often that the vectors leave the queue for the index.
    for _ in range(26):
        names = ["id%d" % i for i in random.sample(range(10, count), count // 100)]
        collection.upsert(ids=names, embeddings=[vector() for _ in names])
else:
    print("ready", flush=True)
    start = count
    while True:
        add(start, 100)
        collection.delete(ids=["id%d" % (start + 3)])
        collection.upsert(ids=["id%d" % (start - 50)], embeddings=[vector()])
        start += 100
        if start % 300 == 0:
            small = client.create_collection("short%d" % start, embedding_function=None)
            small.add(ids=["x"], embeddings=[[1.0, 2.0]])
            client.delete_collection("short%d" % start)
