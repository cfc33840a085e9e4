"""Reenactment: references set once, keypoints, motion transfer, frames; by nnabla or by onnxruntime."""
