"""sentence-transformers called bare, in 32 bits, on the texts of a file of jobs. Prints tokens and seconds as JSON.

    bare_reference.py MODEL JOBS
"""

import json
import sys
import time

from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
with open(sys.argv[2]) as file:
    texts = [json.loads(line)["input"] for line in file]
model.encode(texts[:64], batch_size=32)
began = time.monotonic()
model.encode(texts, batch_size=32)
seconds = time.monotonic() - began
window = model.get_max_seq_length()
tokens = sum(min(len(ids), window) for ids in model.tokenizer(texts)["input_ids"])
print(json.dumps({"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}))
