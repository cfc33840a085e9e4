"""Images, clips and folders of frames, in and out. Every frame is an RGB array, uint8 [H,W,3], in sRGB.

All that opens a clip, to animate, to train or to score, goes through here and so sees the same pictures: upright, with
square pixels, in the colours that the file says it has. Clips stream: memory does not grow with their length.
"""
