"""A TensorRT package that is not there, for tests of what is made of it."""


class FakePackage:
    name, version, builds_without_gpu, module = "tensorrt_rtx", "1.7", True, None
