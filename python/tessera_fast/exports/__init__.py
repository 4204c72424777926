"""Models as typed ONNX graphs. ``folder.write_onnx`` is the way in; network.py has the graphs."""
