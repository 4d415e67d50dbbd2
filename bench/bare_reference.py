"""sentence-transformers called bare on the texts of a file of jobs. Prints tokens and seconds as JSON.

    bare_reference.py MODEL JOBS [float32 | bfloat16]
"""

import json
import os
import sys
import time

import torch
from sentence_transformers import SentenceTransformer

torch.set_num_threads(len(os.sched_getaffinity(0)))
dtype = getattr(torch, sys.argv[3] if len(sys.argv) > 3 else "float32")
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": dtype})
with open(sys.argv[2]) as file:
    texts = [json.loads(line)["input"] for line in file]
model.encode(texts[:64], batch_size=32)
began = time.monotonic()
model.encode(texts, batch_size=32)
seconds = time.monotonic() - began
window = model.get_max_seq_length()
tokens = sum(min(len(ids), window) for ids in model.tokenizer(texts)["input_ids"])
print(json.dumps({"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}))
