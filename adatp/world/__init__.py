"""A small world of synthetic videos, with questions about them whose answers are known.

`clips` makes the content of a clip, `drawing` paints its frames, `questions` asks about it, and `files` writes it as
MP4. A clip depends only on its split and its number, so no clip is stored.
"""
