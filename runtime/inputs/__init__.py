"""Images and videos: from a message to embeddings.

message.py      a message from what a caller says and shows
sources.py      what a caller may give as images and videos; a still to RGB
media.py        options: what is shown of them
writer.py       stills and clips as parts of a message, in one family's format
original.py     the same as the original code writes it
images.py       images, groups and messages as data; what decodes an image
tiles.py        an image's overview and its tiles
video.py        which frames of a video are shown, and their pixels
encoder.py      images to embeddings in a bounded ring, decoded by worker threads
pixels.py       RGB to the vision stage's pixel values
prefetch.py     an iterator that is one item ahead
"""
