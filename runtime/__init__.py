"""Run bundles. Needs only a bundle: imports neither PyTorch nor the reference nor the exporter.

model.py          LongLLaVA: question, images and videos in, streamed answer out
session.py        a sequence that is kept: ingest once, ask many, rewind, fork
session_file.py   a session on disk
sequence.py       text, images and state of one sequence; calls publish whole values
draft.py          what one call adds to a sequence, and whether it fits
content.py        what a sequence holds, as one value
runner.py         what a sequence needs of a bundle: backend, limits, tokenizer, encoder, format
options.py        how a bundle is run; open_backend.py opens what it asks for, usable_backends.py says what can be had
option_checks.py  what is wrong with an option's value
request_checks.py what is wrong with a request
prefill.py        embeddings to the decoder, in chunks that bound attention's memory
decode.py         the decoding loop
sampling.py       scores to a token, greedily or by a seeded draw
timings.py        seconds by stage, and progress
inputs/           images and videos: from a message to embeddings
text/             ids, and the answer's text
backends/         what runs the stages
"""
