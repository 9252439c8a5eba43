"""Text: the chat protocol, its ids, and the answer's text.

tokenizer.py    text to ids and back, streaming
chat.py         the chat protocol
detokenizer.py  ids to the answer's text, up to a stop text
"""
