"""Run bundles. Knows no PyTorch, no oracle and no exporter; it meets export in the bundle alone.

model.py        LongLLaVA: question and images in, streamed answer out
images.py       image files to pixel values
tokenizer.py    text to ids and back, streaming
prompt.py       the chat protocol
ingest.py       images and text to decoder inputs, lazily
onnxrt.py       one stage in ONNX Runtime
decoder.py      the decoder stage with its carried state, the KV cache in place
generate.py     greedy decoding
"""
