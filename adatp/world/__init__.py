"""A small world of videos made by code, with questions about them whose answers are known.

`clips` decides what happens in a clip, `drawing` paints it, `questions` asks about it, `files` writes it as MP4. A clip
is a function of its split and its number: nothing is stored.
"""
