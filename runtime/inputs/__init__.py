"""Images and videos: from a message to embeddings.

sources.py      images and videos in any form that a caller may give
media.py        options: how they are shown
parts.py        a message as parts: texts, and groups of images
message.py      a message from a caller's text, images and videos
writer.py       stills and clips as parts, in one family's format
original.py     the same, as the original code writes it
images.py       one image of a prompt: the source of its pixels, and the text around it
image_files.py  image files to RGB
pixels.py       RGB to the vision stage's pixel values
tiles.py        an image's overview and its tiles
video.py        frames of a video that are shown, and their pixels
encoder.py      images to embeddings with bounded memory, decoded by worker threads
prefetch.py     an iterator that is one item ahead
"""
