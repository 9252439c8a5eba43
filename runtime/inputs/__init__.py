"""Images and videos: from a message to embeddings.

sources.py      what a caller may give as images and videos
media.py        options: what is shown of them
parts.py        a message as parts: texts, and groups of images
message.py      a message from what a caller says and shows
writer.py       stills and clips as parts, in one family's format
original.py     the same as the original code writes it
images.py       one image of a prompt: where its pixels come from, which text is around it
image_files.py  image files to RGB
pixels.py       RGB to the vision stage's pixel values
tiles.py        an image's overview and its tiles
video.py        which frames of a video are shown, and their pixels
encoder.py      images to embeddings in a bounded ring, decoded by worker threads
prefetch.py     an iterator that is one item ahead
"""
