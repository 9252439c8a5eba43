"""Text: ids, and the answer's text.

tokenizer.py    text to ids and back, streaming
detokenizer.py  ids to the answer's text, up to a stop text
"""
