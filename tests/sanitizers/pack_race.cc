// Packing while another thread writes the arrays: csrc/pack alone, for the thread sanitizer and for
// the address sanitizer (tests/helpers/sanitizers.py). `pack_race SECONDS`
//
// The packer reads the caller's memory by relaxed atomic loads, and the writer here stores
// likewise: then every report of the thread sanitizer is a fault of the packer, and nothing is
// suppressed. A caller's writes are plain stores; on the machines that this package is built for
// they are the same instructions.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "core/check.h"
#include "pack/pack_tokens.h"

using namespace tessera;
using namespace tessera::pack;

namespace {

constexpr int kRows = 6, kColumns = 5, kPixels = kRows * kColumns;
constexpr int kOptical = 44, kRadar = 23;  // dates

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "pack_race: %s\n", what);
  std::exit(1);
}

// Arrays [dates, rows, columns, ...] of one list of dates, on the heap and no byte longer.
template <class T>
struct Dates {
  int dates, channels;
  Element element;
  std::vector<T> bands;
  std::vector<uint8_t> mask;
  std::vector<int32_t> doy;

  Dates(int dates, int channels, Element element)
      : dates(dates),
        channels(channels),
        element(element),
        bands(size_t(dates) * kPixels * channels, T(1)),
        mask(size_t(dates) * kPixels, 0),
        doy(size_t(dates) * kPixels, 1) {}

  Series series(Observed observed, int orbit) const {
    Series s{};
    s.bands = reinterpret_cast<const char*>(bands.data());
    s.mask = mask.data();
    s.doy = reinterpret_cast<const char*>(doy.data());
    const ptrdiff_t pixel[] = {kPixels, kColumns, 1};
    for (int i = 0; i < 3; ++i) {
      s.bands_stride[i] = pixel[i] * channels * ptrdiff_t(sizeof(T));
      s.mask_stride[i] = pixel[i];
      s.doy_stride[i] = pixel[i] * 4;
    }
    s.element = element;
    s.channels = channels;
    s.observed = observed;
    s.dates = dates;
    s.orbit = static_cast<uint8_t>(orbit);
    return s;
  }
};

template <class T>
void store(T& to, T value) {
  __atomic_store(&to, &value, __ATOMIC_RELAXED);
}

// A stream packed; false where the packer noticed a change or an impossible value.
template <class T>
bool packed(const std::vector<Series>& all, int stream, const Window& window, const uint8_t* skip) {
  const StreamPacker packer(all, stream, window, skip);
  std::vector<std::vector<uint16_t>> observed(all.size(), std::vector<uint16_t>(kPixels));
  std::vector<uint16_t*> pointers;
  for (auto& o : observed) pointers.push_back(o.data());
  try {
    const Counts counts = packer.count(pointers);
    std::vector<int64_t> offsets{0}, step_offsets{0};
    for (int p = 0; p < kPixels; ++p) {
      offsets.push_back(offsets.back() + counts.tokens[p]);
      step_offsets.push_back(step_offsets.back() + counts.steps[p]);
    }
    const size_t N = offsets.back();
    std::vector<T> bands(N * all[0].channels);
    std::vector<uint16_t> doy(N), multiplicity(N);
    std::vector<uint8_t> orbit(N);
    std::vector<int32_t> steps(step_offsets.back());
    packer.fill({reinterpret_cast<char*>(bands.data()), doy.data(), orbit.data(),
                 multiplicity.data(), offsets.data(), steps.data(), step_offsets.data()});
    for (int p = 0; p < kPixels; ++p) {
      int64_t reads = 0;
      for (int64_t n = offsets[p]; n < offsets[p + 1]; ++n) {
        reads += multiplicity[n];
        require(doy[n] >= 1 && doy[n] <= kMaxDoy && orbit[n] < 2 && multiplicity[n] > 0, "token");
        for (int c = 0; c < all[0].channels; ++c)
          require(bands[n * all[0].channels + c] * 0 == 0, "a value that is not finite");
      }
      require(reads == step_offsets[p + 1] - step_offsets[p], "multiplicities and steps differ");
      for (int64_t s = step_offsets[p]; s < step_offsets[p + 1]; ++s)
        require(steps[s] >= 0 && steps[s] < offsets[p + 1] - offsets[p], "step");
    }
    return true;
  } catch (const InputError&) {
    return false;
  }
}

template <class T>
void race(Element element, double seconds) {
  Dates<T> optical(kOptical, 10, element), ascending(kRadar, 2, element),
      descending(kRadar, 2, element);
  std::atomic<bool> stop{false};
  std::atomic<int> mode{0};
  std::thread writer([&] {
    std::minstd_rand random(7);
    auto pick = [&](auto& values) -> auto& { return values[random() % values.size()]; };
    while (!stop.load(std::memory_order_relaxed)) {
      const int now = mode.load(std::memory_order_relaxed);
      for (Dates<T>* d : {&optical, &ascending, &descending}) {
        if (now > 0) {  // counts stay, or else hardly a call would return
          store(pick(d->mask), static_cast<uint8_t>(random() % 3));
          store(pick(d->bands), static_cast<T>(random() % 2));
        }
        store(pick(d->doy), static_cast<int32_t>(1 + random() % (now > 1 ? 400 : 366)));
        if (now > 1 && element == Element::kF32 && d == &optical)
          store(pick(d->bands), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
      }
    }
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  int returned = 0, refused = 0;
  for (int i = 0; std::chrono::steady_clock::now() < end || !returned || !refused; ++i) {
    mode.store(i % 3, std::memory_order_relaxed);
    if (i % 3 == 0) {  // what may have become NaN is a number again
      for (T& value : optical.bands) store(value, T(1));
      for (int32_t& day : optical.doy) store(day, int32_t{1});
      for (int32_t& day : ascending.doy) store(day, int32_t{1});
      for (int32_t& day : descending.doy) store(day, int32_t{1});
    }
    const Sampling sampling = i % 2 ? Sampling::kV2 : i % 4 ? Sampling::kV1_1 : Sampling::kV1_0;
    const Window window{kRows, kColumns, 0, sampling, 1, i % 5 == 0, 1 + i % 3};
    std::vector<uint8_t> skip(kPixels);
    const Series s2 = optical.series(i % 7 ? Observed::kMasked : Observed::kAlways, 0);
    mark_all_zero(s2, window, skip.data());
    const std::vector<Series> s1{ascending.series(Observed::kNonZero, 0),
                                 descending.series(Observed::kNonZero, 1)};
    for (int stream = 0; stream < 2; ++stream) {
      const bool ok = packed<T>(stream ? s1 : std::vector<Series>{s2}, stream, window, skip.data());
      ++(ok ? returned : refused);
    }
  }
  stop = true;
  writer.join();
  std::printf("element %d: %d returned, %d refused\n", int(element), returned, refused);
}

// Without a second thread: what changes between the passes is noticed, both ways.
void changes_between_the_passes(uint8_t before, uint8_t after) {
  Dates<uint16_t> optical(kOptical, 10, Element::kU16);
  std::fill(optical.mask.begin(), optical.mask.end(), before);
  const Window window{kRows, kColumns, 0, Sampling::kV2, 1, true, 2};
  const StreamPacker packer({optical.series(Observed::kMasked, 0)}, 0, window, nullptr);
  const Counts counts = packer.count({nullptr});
  std::vector<int64_t> offsets{0};
  for (int64_t tokens : counts.tokens) offsets.push_back(offsets.back() + tokens);
  const size_t N = offsets.back();
  std::vector<uint16_t> bands(N * 10), doy(N), multiplicity(N);
  std::vector<uint8_t> orbit(N);
  std::fill(optical.mask.begin(), optical.mask.end(), after);
  try {
    packer.fill({reinterpret_cast<char*>(bands.data()), doy.data(), orbit.data(),
                 multiplicity.data(), offsets.data(), nullptr, offsets.data()});
  } catch (const InputError&) {
    return;
  }
  require(false, "a change between the passes was not noticed");
}

}  // namespace

int main(int, char** arguments) {
  const double seconds = std::atof(arguments[1]);
  changes_between_the_passes(0, 1);
  changes_between_the_passes(1, 0);
  race<uint16_t>(Element::kU16, seconds / 3);
  race<int16_t>(Element::kI16, seconds / 3);
  race<float>(Element::kF32, seconds / 3);
}
