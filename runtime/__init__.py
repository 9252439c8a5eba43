"""Run bundles. Knows no PyTorch, no oracle and no exporter; it meets export in the bundle alone.

model.py        LongLLaVA: question, images and videos in, streamed answer out
session.py      a context that is kept: ingest once, ask many, rewind, fork
session_file.py a session on disk
context.py      text, images and state of one sequence, and the points to which it can go back
media.py        stills, tiles and videos become one text and the images in it
showing.py      one image of a prompt: where its pixels come from, which text is around it
images.py       image files to RGB
pixels.py       RGB to the vision stage's pixel values
tiles.py        an image's overview and its tiles
video.py        which frames of a video are shown, and their pixels
tokenizer.py    text to ids and back, streaming
prompt.py       the chat protocol
ingest.py       images to embeddings in a bounded ring, decoded by worker threads
chunks.py       embeddings to the decoder, in chunks that bound attention's memory
timings.py      seconds by stage, and progress
onnxrt.py       one stage in ONNX Runtime
decoder.py      the decoder stage with its carried state, the KV cache in place
sampling.py     scores to a token, greedily or by a seeded draw
generate.py     the decoding loop
answer.py       ids to the answer's text, up to a stop text
"""
