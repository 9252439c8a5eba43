"""Images and videos: from a message to embeddings.

sources.py      images and videos in any form that a caller may give; a still to RGB
media.py        options: how they are shown
message.py      a message from a caller's text, images and videos
writer.py       stills and clips as parts of a message, in one family's format
original.py     the same, as the original code writes it
images.py       images, groups and messages as data; decoding of an image
tiles.py        an image's overview and its tiles
video.py        frames of a video that are shown, and their pixels
encoder.py      images to embeddings with bounded memory, decoded by worker threads
processor.py    settings of the image processor
pixels.py       RGB to the vision stage's pixel values, one view or several
prefetch.py     an iterator that is one item ahead
"""
