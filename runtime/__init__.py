"""Run bundles. Knows no PyTorch, no oracle and no exporter; it meets export in the bundle alone.

model.py         LongLLaVA: question, images and videos in, streamed answer out
session.py       a context that is kept: ingest once, ask many, rewind, fork; session_file.py keeps it on disk
sequence.py      text, images and state of one sequence, and the points to which it can go back
inputs/          a message's images and videos to embeddings
text/            the chat protocol, ids, and the answer's text
prefill.py       embeddings to the decoder, in chunks that bound attention's memory
decode.py        the decoding loop
sampling.py      scores to a token, greedily or by a seeded draw
timings.py       seconds by stage, and progress
backends/        ONNX Runtime and TensorRT behind one protocol
"""
