"""A model as ONNX graphs, and the cache of them."""
