// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

// Must not compile: see CMakeLists.txt.
struct MisspeltLayer {
  void value(MatrixView<const float> x, MatrixView<float> v);
#ifdef SPELT_RIGHT
  void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                 MatrixView<float> q, MatrixView<float> k);
#else
  void querykey(MatrixView<const float> x, std::span<const std::int32_t> positions,
                MatrixView<float> q, MatrixView<float> k);
#endif
  void delta(MatrixView<const float> x, MatrixView<const float> q,
             std::span<const Segment<float>> segments, MatrixView<float> u);
};

void step(Pass<float>& pass, MisspeltLayer& layer, MatrixView<float> x) { pass.layer(layer, x); }
