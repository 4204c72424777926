"""Where the tensorrt back end runs: on a GPU, or for tests in ONNX Runtime on the CPU."""

EMULATED = "onnxruntime"
