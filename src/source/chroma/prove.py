"""Opens a restored persistent directory with the real chromadb, and says what it finds as JSON.

usage: prove.py DIRECTORY REQUEST.json
The request names collections, and ids with the vectors that they must have. A search may miss a few: it is approximate.
"""
import json
import math
import sys


def close(a, b):
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-5) for x, y in zip(a, b))


def look(client, wanted):
    collection = client.get_collection(wanted["name"], embedding_function=None)
    answer = {"id": str(collection.id), "count": collection.count(), "fetched": 0, "found": 0, "wrong": None}
    ids = [sample[0] for sample in wanted["sample"]]
    if not ids:
        return answer
    got = collection.get(ids=ids, include=["embeddings"])
    vectors = dict(zip(got["ids"], got["embeddings"]))
    for name, vector in wanted["sample"]:
        if name not in vectors:
            answer["wrong"] = name + " is not there"
        elif not close([float(x) for x in vectors[name]], vector):
            answer["wrong"] = name + " has another vector"
        else:
            answer["fetched"] += 1
        hits = collection.query(query_embeddings=[vector], n_results=min(10, answer["count"]), include=["distances"])
        answer["found"] += name in hits["ids"][0]
    return answer


def main():
    import chromadb
    from chromadb.config import Settings

    with open(sys.argv[2]) as f:
        request = json.load(f)
    answers = []
    for wanted in request:
        settings = Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(sys.argv[1], settings, wanted["tenant"], wanted["database"])
        answers.append(look(client, wanted))
    print(json.dumps({"version": chromadb.__version__, "collections": answers}))


main()
