"""sentence-transformers called bare on the texts of a file of jobs. Prints tokens and seconds, of the median round at the
best batch size, as JSON.

    bare_reference.py MODEL JOBS [--device cpu] [--dtype float32] [--batch 32 …] [--rounds 1]
"""

import argparse
import json
import os
import statistics
import time

import torch
from sentence_transformers import SentenceTransformer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("jobs")
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--batch", type=int, nargs="+", default=[32])
parser.add_argument("--rounds", type=int, default=1)
args = parser.parse_args()

torch.set_num_threads(len(os.sched_getaffinity(0)))
model = SentenceTransformer(args.model, device=args.device, model_kwargs={"dtype": getattr(torch, args.dtype)})
with open(args.jobs) as file:
    texts = [json.loads(line)["input"] for line in file]


def seconds(batch):
    # The vectors come back to the host, so that nothing is left to wait for.
    began = time.monotonic()
    model.encode(texts, batch_size=batch)
    return time.monotonic() - began


model.encode(texts[: 64 if args.device == "cpu" else 4_096], batch_size=args.batch[0])
took = {batch: statistics.median(seconds(batch) for _ in range(args.rounds)) for batch in args.batch}
best = min(took, key=took.get)
window = model.get_max_seq_length()
tokens = sum(min(len(ids), window) for ids in model.tokenizer(texts)["input_ids"])
print(json.dumps({"tokens": tokens, "batch": best, "seconds": took[best], "tokens_per_s": tokens / took[best], "seconds_by_batch": took}))
