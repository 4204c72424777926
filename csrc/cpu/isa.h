// The instruction sets built into this library, best first, and whether each runs here.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace tessera::cpu {

struct Isa {
  const char* name;
  const KernelTable& (*table)();
  bool runs;
  const char* needs;  // what the machine lacks where !runs
  bool automatic;     // false: only by name (test builds)
};

const std::vector<Isa>& isas();

// The best that runs, or `name` exactly: throws Unavailable where it cannot run or is not built in.
const KernelTable& select_isa(const std::string& name);

}  // namespace tessera::cpu
