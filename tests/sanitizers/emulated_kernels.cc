// The CUDA kernels on the emulator, for the sanitizers (sanitizers.py): their operands have
// no byte more than the host gives them. `emulated_kernels CASE...`, where a case is pack,
// schedule, network or layer, or a fault of cuda_emulator/planted.h.
//
// To the thread sanitizer every CUDA thread is a thread, and only __syncthreads and __syncwarp
// order memory: a shuffle, a vote or a matrix product does not. Blocks come one after the other.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda_emulator/planted.h"
#include "encoder.cuh"
#include "encoder.h"
#include "pack.cuh"

using namespace tessera;
using namespace tessera::cuda;

namespace {

std::minstd_rand random_bits(7);

int below(int bound) {
  return int(random_bits() % unsigned(bound));
}

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "emulated_kernels: %s\n", what);
  std::exit(1);
}

std::vector<int32_t> offsets_of(const std::vector<int>& lengths) {
  std::vector<int32_t> offsets{0};
  for (int n : lengths) offsets.push_back(offsets.back() + n);
  return offsets;
}

std::vector<int32_t> schedule_of(const std::vector<int32_t>& offsets, int tokens) {
  const int pixels = int(offsets.size()) - 1;
  std::vector<int32_t> schedule(1 + 2 * pixels, -1);
  schedule_pixels({offsets.data(), pixels, tokens, schedule.data()}, 0);
  int covered = 0;
  for (int i = 0; i < schedule[0]; ++i) covered += schedule[2 + 2 * i] - schedule[1 + 2 * i];
  require(covered == pixels, "a schedule does not cover every pixel once");
  return schedule;
}

void schedule() {
  for (int pixels : {1, 127, 129, 1000}) {
    std::vector<int> lengths(pixels);
    for (int& n : lengths) n = below(90);
    schedule_of(offsets_of(lengths), 128);
  }
}

// Elements whose exponent is that of numbers around 0.05.
std::vector<uint16_t> elements(size_t count, bool float16) {
  std::vector<uint16_t> made(count);
  for (uint16_t& e : made)
    e = uint16_t(below(2) << 15 | (float16 ? 0x2a00 | below(0x200) : 0x3d00 | below(0x80)));
  return made;
}

std::vector<float> floats(size_t count) {
  std::vector<float> made(count);
  for (float& x : made) x = 0.5f + float(below(100)) / 200;
  return made;
}

std::vector<uint16_t> small(size_t count, int bound) {
  std::vector<uint16_t> made(count);
  for (uint16_t& x : made) x = uint16_t(1 + below(bound));
  return made;
}

const std::vector<int> kLengths{0, 1, 8, 9, 63, 17, 128, 3, 0, 50};

template <class S>
void network(bool float16) {
  constexpr int kLayers = 2, kChannels = 10, kStride = S::D + 16;
  const std::vector<int32_t> offsets = offsets_of(kLengths);
  const size_t N = offsets.back(), P = kLengths.size();
  const auto schedule = schedule_of(offsets, S::kTokens);
  std::vector<int16_t> bands(N * kChannels);
  for (int16_t& x : bands) x = int16_t(100 + below(7000));
  std::vector<uint8_t> orbit(N);
  for (uint8_t& x : orbit) x = uint8_t(below(2));
  const auto doy = small(N, 366), multiplicity = small(N, 5);
  const auto table = floats(367 * S::D), constant = floats(S::D);
  const int chunks = S::kEmbedChunks + kLayers * S::kLayerChunks + 1;  // the last is not read
  const auto weights = elements(size_t(chunks) * S::kChunkBytes / 2, float16);
  const auto parameters = floats(S::kEmbedParameters + kLayers * S::kLayerParameters);
  std::vector<float> pooled((P - 1) * kStride + S::D, -7.0f);
  const NetworkArguments arguments{bands.data(),
                                   orbit.data(),
                                   doy.data(),
                                   multiplicity.data(),
                                   offsets.data(),
                                   schedule.data(),
                                   table.data(),
                                   weights.data(),
                                   parameters.data(),
                                   constant.data(),
                                   pooled.data(),
                                   kStride,
                                   kChannels,
                                   kLayers,
                                   int(BandKind::kInt16),
                                   1};
  require(encode_network({S::D, S::H, S::F, S::kTokens, true}, float16, int(P), 0, arguments),
          "no such network");
  for (size_t i = 0; i < pooled.size(); ++i) {
    const bool written = i % kStride < size_t(S::D);
    require(written ? std::isfinite(pooled[i]) && pooled[i] != -7.0f : pooled[i] == -7.0f,
            "pooled: not written, or outside its columns");
  }
}

template <class S>
void layer(bool float16) {
  const std::vector<int32_t> offsets = offsets_of(kLengths);
  const size_t N = offsets.back();
  const auto schedule = schedule_of(offsets, S::kTokens);
  auto x = elements(N * S::D, float16);
  const auto multiplicity = small(N, 5);
  const auto weights = elements(size_t(S::kLayerChunks + 1) * S::kChunkBytes / 2, float16);
  const auto parameters = floats(S::kLayerParameters);
  const LayerArguments arguments{x.data(),         x.data(),        multiplicity.data(),
                                 offsets.data(),   schedule.data(), weights.data(),
                                 parameters.data()};
  require(encode_layer({S::D, S::H, S::F, S::kTokens, false}, float16, int(kLengths.size()), 0,
                       arguments),
          "no such layer");
}

// The shapes of encoder.cu.
void networks() {
  network<Sizes<144, 4, 384, 2, 4, Element::kBfloat16>>(false);
  network<Sizes<144, 4, 384, 2, 8, Element::kFloat16>>(true);
}
void layers() {
  layer<Sizes<256, 4, 1024, 1, 8, Element::kBfloat16>>(false);
}

void pack_stream(Sampling sampling, int stream, bool is_float, int dates) {
  constexpr int kRows = 3, kColumns = 7, P = kRows * kColumns;
  const int channels = stream ? 2 : 10, words = channels * (is_float ? 2 : 1) / 2;
  const int lists = stream ? 2 : 1;
  std::vector<std::vector<uint32_t>> bands(lists);
  std::vector<std::vector<uint8_t>> masks(lists);
  std::vector<std::vector<int32_t>> days(lists);
  PackInput in{};
  for (int i = 0; i < lists; ++i) {
    bands[i].resize(size_t(dates) * P * words);
    for (uint32_t& word : bands[i]) word = below(3) ? 0x3f803f80u : 0;
    masks[i].resize(size_t(dates) * P);
    for (uint8_t& mask : masks[i]) mask = uint8_t(below(2));
    days[i].resize(i ? dates : size_t(dates) * P);
    for (int32_t& day : days[i]) day = 1 + below(366);
    in.series[i] = {bands[i].data(), stream ? nullptr : masks[i].data(),
                    days[i].data(),  i == 0,
                    dates,           stream ? 1 + i : 0,
                    uint8_t(i)};
  }
  std::vector<uint32_t> bits(size_t(lists) * ((dates + 31) / 32) * P);
  std::vector<uint16_t> counts(3 * P);
  std::vector<uint8_t> skip(P);
  std::vector<unsigned long long> errors(3, ~0ull);
  std::vector<int32_t> tokens(P), steps(P);
  in.series_count = lists, in.dates = lists * dates, in.stream = stream, in.is_float = is_float;
  in.pixels = P, in.columns = kColumns, in.sampling = sampling, in.seed = 3;
  in.binary_masks = true, in.bits = bits.data(), in.counts = counts.data();
  in.skip = skip.data(), in.errors = errors.data();
  if (stream == 0) mark_all_zero(in, 0);
  count_tokens(in, tokens.data(), steps.data(), 0);
  const auto offsets = offsets_of({tokens.begin(), tokens.end()});
  const auto step_offsets = offsets_of({steps.begin(), steps.end()});
  const size_t N = offsets.back();
  std::vector<uint32_t> out(N * words);
  std::vector<uint16_t> doy(N), multiplicity(N);
  std::vector<uint8_t> orbit(N);
  std::vector<int32_t> order(step_offsets.back());
  fill_tokens(in,
              {out.data(), doy.data(), orbit.data(), multiplicity.data(), offsets.data(),
               order.data(), step_offsets.data()},
              0);
  for (size_t i = 0; i < N; ++i)
    require(doy[i] >= 1 && doy[i] <= 366 && multiplicity[i] > 0, "a token that nobody wrote");
}

void packs() {
  for (Sampling sampling : {Sampling::kV2, Sampling::kV1_1, Sampling::kV1_0})
    for (int stream = 0; stream < 2; ++stream)
      for (bool is_float : {false, true})
        for (int dates : {40, 300}) pack_stream(sampling, stream, is_float, dates);
}

void planted(const std::string& fault) {
  constexpr int kBlocks = 2, kThreads = 64;
  std::vector<int> out(kBlocks * kThreads, -7);
  emulator::reverse(out.data(), kBlocks, kThreads, fault);
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "pack")
      packs();
    else if (name == "schedule")
      schedule();
    else if (name == "network")
      networks();
    else if (name == "layer")
      layers();
    else
      planted(name);
    std::printf("%s\n", arguments[i]);
  }
}
