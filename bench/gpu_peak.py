"""What the first GPU reaches in a large matrix product in bf16, on random numbers. Prints it as JSON."""

import json

import torch

SIZE, PRODUCTS = 8_192, 20

left, right = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
for _ in range(3):
    left @ right
began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
began.record()
for _ in range(PRODUCTS):
    left @ right
ended.record()
torch.cuda.synchronize()
seconds = began.elapsed_time(ended) / 1e3 / PRODUCTS
print(json.dumps({"name": torch.cuda.get_device_name(), "flops_per_s": 2 * SIZE**3 / seconds}))
