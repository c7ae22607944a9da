// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <variant>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Chooses among backends, so that what is written against a list knows none of them. A backend is
/// a struct of
/// - `id`: its Backend;
/// - `multiplies_bf16`: whether with Precision::Bfloat16 the rows of products are bf16, too;
/// - `computes(precision)`: whether it does on the processor that the program runs on;
/// - `Weights`: a weight matrix, made of (const Tensor&, Precision) and shared between threads;
///   `reads_tensor()`;
/// - `Products`: what products of one runner keep; `padded_rows(rows)`,
///   `multiply(weights, rows, y, padded, team)`;
/// - `Attention`: what the attention of one runner keeps, made of (threads);
///   `attend(q, stairs, shape, out, team)` for many rows.
/// The weights and the attention of the first one are made without arguments, too.
template <class... All>
struct BackendList {
  using Weights = std::variant<typename All::Weights...>;
  using Products = std::tuple<typename All::Products...>;
  using Attention = std::variant<typename All::Attention...>;

  /// Whether the rows of products are bf16, not float.
  [[nodiscard]] static constexpr bool multiplies_bf16(const ComputeOptions& options) {
    return options.precision == Precision::Bfloat16 &&
           ((options.backend == All::id && All::multiplies_bf16) || ...);
  }

  /// Rows that inputs of products need memory for, whoever computes them.
  [[nodiscard]] static Index padded_rows(Index rows) {
    return std::max({All::Products::padded_rows(rows)...});
  }

  /// Whether the backend is listed and computes in that precision on this processor.
  [[nodiscard]] static bool computes(const ComputeOptions& options) {
    return ((options.backend == All::id && All::computes(options.precision)) || ...);
  }

  /// Throws std::invalid_argument where computes() is false.
  [[nodiscard]] static Weights lay_out(const Tensor& weight, const ComputeOptions& options) {
    Weights weights;
    choose(options, [&]<class Chosen>(Chosen) {
      weights.template emplace<typename Chosen::Weights>(weight, options.precision);
    });
    return weights;
  }

  /// Throws std::invalid_argument where computes() is false.
  [[nodiscard]] static Attention make_attention(const ComputeOptions& options, int threads) {
    Attention attention;
    choose(options, [&]<class Chosen>(Chosen) {
      attention.template emplace<typename Chosen::Attention>(threads);
    });
    return attention;
  }

  /// y `[m, outputs]` = x `[m, inputs]` W^T by the backend of the weights.
  static void multiply(Products& products, const Weights& weights, const ProductRows& x,
                       MatrixView<float> y, bool padded, ThreadTeam& team) {
    const auto try_one = [&]<class One>(One) {
      if (const auto* const own = std::get_if<typename One::Weights>(&weights))
        std::get<typename One::Products>(products).multiply(*own, x, y, padded, team);
    };
    (try_one(All{}), ...);
  }

 private:
  template <class Work>
  static void choose(const ComputeOptions& options, const Work& work) {
    const auto try_one = [&]<class One>(One one) {
      if (options.backend != One::id) return false;
      if (!One::computes(options.precision)) refuse_precision(options);
      work(one);
      return true;
    };
    if ((try_one(All{}) || ...)) return;
    std::string known;
    ((known += (known.empty() ? "" : ", ") + std::string(name_of(All::id))), ...);
    base::refuse_argument("ComputeOptions: backend must be one that is built in (", known,
                          "), got ", name_of(options.backend));
  }

  [[noreturn]] static void refuse_precision(const ComputeOptions& options) {
    std::string instead;
    ((instead += All::computes(options.precision)
                     ? std::string(", or the backend ") + name_of(All::id)
                     : std::string()),
     ...);
    base::refuse_argument("ComputeOptions: the backend ", name_of(options.backend), " has no ",
                          name_of(options.precision),
                          " products on this processor: ask for float32", instead);
  }
};

}  // namespace dllm_cache::inline v0_1::models::detail
