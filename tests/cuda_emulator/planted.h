// A kernel with one planted fault, to show that the emulator or a sanitizer reports that kind.
#pragma once

#include <string>

namespace tessera::emulator {

// out[b][i] = n - 1 - i for b < blocks and n = threads, through shared memory. `fault` names what
// is wrong with the kernel, "none" for nothing; an unknown name is an Error.
void reverse(int* out, unsigned blocks, unsigned threads, const std::string& fault);

}  // namespace tessera::emulator
