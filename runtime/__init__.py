"""Run bundles. Knows no PyTorch, no oracle and no exporter; it meets export in the bundle alone.

model.py        LongLLaVA: question, images and videos in, streamed answer out
media.py        stills, tiles and videos become one text and one sequence of images
images.py       image files to RGB
pixels.py       RGB to the vision stage's pixel values
tiles.py        an image's overview and its tiles
video.py        which frames of a video are shown, and their pixels
tokenizer.py    text to ids and back, streaming
prompt.py       the chat protocol
ingest.py       images and text to decoder inputs, lazily
onnxrt.py       one stage in ONNX Runtime
decoder.py      the decoder stage with its carried state, the KV cache in place
sampling.py     scores to a token, greedily or by a seeded draw
generate.py     the decoding loop
answer.py       ids to the answer's text, up to a stop text
"""
