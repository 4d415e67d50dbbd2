"""Makes the jobs of a story, good and bad, and says what should come of them.

    make_jobs.py DEMO_JOBS FOLDER COUNT

Writes into FOLDER: kcat-<topic>.jsonl (one job a line, for `kcat -P -l`), confluent.json (records that need a real
client: bytes that are no text, tombstones, headers), and expected.json: how many outcomes by tenant and status, and
how many dead letters. The jobs are the openings of the demo's texts, so that they are real and short.
"""

import base64
import collections
import json
import pathlib
import random
import sys

TENANTS = ["acme", "globex", "initech", "hooli", "stark"]


def main():
    demo, folder, count = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(7)
    texts = good_texts(demo)
    expected = collections.Counter()
    dead_letters = 0
    kcat = collections.defaultdict(list)
    confluent = []

    for record, tenant, status in special_records():
        confluent.append(record)
        if status == "dead_letter":
            dead_letters += 1
        else:
            expected[tenant, status] += 1

    for number in range(count - len(confluent)):
        tenant = chance.choice(TENANTS)
        words = chance.choice(texts).split()
        job = {"id": f"{tenant}-{number}", "tenant": tenant, "model": "minilm", "input": " ".join(words[: chance.randint(3, 12)])}
        topic, owner, status = ("jobs" if chance.random() < 0.7 else f"jobs.{tenant}"), tenant, "succeeded"
        mistake = chance.random()
        if mistake < 0.01:
            job["model"], status = "gpt-9", "rejected"
        elif mistake < 0.02:
            topic, job["tenant"], owner, status = "jobs", "umbrella", "unclaimed", "rejected"
        elif mistake < 0.03:
            job["input"], status = "  ", "rejected"
        elif mistake < 0.04:
            topic, job["tenant"], status = f"jobs.{tenant}", chance.choice([t for t in TENANTS if t != tenant]), "rejected"
        line = json.dumps(job)
        if 0.04 <= mistake < 0.05:
            line, status = line[: len(line) // 2], "dead_letter"
        if status == "dead_letter":
            dead_letters += 1
        else:
            expected[owner, status] += 1
        if number % 2:
            kcat[topic].append(line)
        else:
            confluent.append({"topic": topic, "value": text(line)})

    for topic, lines in kcat.items():
        (folder / f"kcat-{topic}.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "confluent.json").write_text(json.dumps(confluent))
    outcomes = [{"tenant": tenant, "status": status, "jobs": jobs} for (tenant, status), jobs in sorted(expected.items())]
    (folder / "expected.json").write_text(json.dumps({"count": count, "dead_letters": dead_letters, "outcomes": outcomes}))


def special_records():
    """Records that a careless or hostile producer writes, with whose outcome each becomes."""

    def job(**fields):
        return json.dumps({"id": "special", "tenant": "acme", "model": "minilm", "input": "Hello there", **fields})

    values = [
        (job(), "acme", "succeeded"),
        (job(), "acme", "succeeded"),  # the same id again: ids belong to the producer
        (job(input="with a \u0000 inside"), "acme", "succeeded"),
        (job(input="wind " * 3_000), "acme", "succeeded"),  # longer than the model's window
        (job(labels={"team": "search"}), "acme", "succeeded"),
        (job(input=""), "acme", "rejected"),
        (job(input="x" * 700_000), "acme", "rejected"),  # over the configured limit
        (job(deadline="2020-01-01T00:00:00Z"), "acme", "rejected"),
        (job(deadline="soon"), "acme", "rejected"),
        (job(id=""), "acme", "rejected"),
        (job(model="../minilm"), "acme", "rejected"),
        (job(tenant="../acme"), "unclaimed", "rejected"),
        (job(tenant="%2F"), "unclaimed", "rejected"),
        (job(tenant="007"), "unclaimed", "rejected"),
        (job(tenant="Acme"), "unclaimed", "rejected"),
        (job(tenant="acme "), "unclaimed", "rejected"),
        (job(tenant="\u0430cme"), "unclaimed", "rejected"),  # a Cyrillic look-alike
        (job(tenant="unclaimed"), "unclaimed", "rejected"),
        (job()[:-1] + ', "input": "twice"}', None, "dead_letter"),
        (job(unknown=1), None, "dead_letter"),
        (job(input=7), None, "dead_letter"),
        ('{"id": "a"}', None, "dead_letter"),
        ('{"input": ' + "[" * 5_000, None, "dead_letter"),
        ("[]", None, "dead_letter"),
        ("", None, "dead_letter"),
    ]
    for value, tenant, status in values:
        yield {"topic": "jobs", "value": text(value)}, tenant, status
    yield {"topic": "jobs", "value": base64.b64encode(b'{"id":"\xff\xfe"}').decode()}, None, "dead_letter"
    yield {"topic": "jobs", "value": None, "key": "a tombstone"}, None, "dead_letter"
    event = {"tenant": "globex", "model": "minilm", "input": "An event"}
    headers = {"ce_id": "event-1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    yield {"topic": "jobs", "value": text(json.dumps(event)), "headers": headers}, "globex", "succeeded"


def good_texts(path):
    texts = []
    for line in open(path, encoding="utf-8"):
        try:
            job = json.loads(line)
            if isinstance(job["input"], str) and len(job["input"].split()) > 3:
                texts.append(job["input"])
        except (ValueError, KeyError, TypeError):
            pass
    return texts


def text(value):
    return base64.b64encode(value.encode()).decode()


main()
