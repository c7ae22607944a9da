// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/vverify_selector.hpp"

namespace tensor_parallel {

using dllm_cache::Index;
using dllm_cache::MatrixView;
using dllm_cache::Range;

/// The processes that share a model, over an MPI communicator.
///
/// All ranks make the same calls in the same order. Errors of MPI end the program, as is its
/// default. The communicator must outlive the object; copies are as good as the original.
class Ranks {
 public:
  explicit Ranks(MPI_Comm communicator) : m_communicator(communicator) {
    MPI_Comm_rank(communicator, &m_rank);
    MPI_Comm_size(communicator, &m_size);
  }

  [[nodiscard]] int rank() const { return m_rank; }
  [[nodiscard]] int size() const { return m_size; }

  /// The share of this rank when `count` items are dealt out in ascending order.
  [[nodiscard]] Range share(Index count) const { return share(count, m_rank); }

  /// x `[m, n]` := the sum of all ranks' x, the same on every rank.
  void sum(MatrixView<float> x) const {
    if (x.stride == x.cols) return sum(x.data, x.rows * x.cols, MPI_FLOAT);
    for (Index row = 0; row < x.rows; ++row) sum(x.row(row), x.cols, MPI_FLOAT);
  }

  /// The three numbers of each row, summed over the ranks.
  void sum(std::span<dllm_cache::SimilaritySums> sums) const {
    static_assert(sizeof(dllm_cache::SimilaritySums) == 3 * sizeof(double));
    sum(sums.data(), 3 * static_cast<Index>(sums.size()), MPI_DOUBLE);
  }

  /// The smallest of the ranks' numbers.
  [[nodiscard]] int smallest(int number) const {
    MPI_Allreduce(MPI_IN_PLACE, &number, 1, MPI_INT, MPI_MIN, m_communicator);
    return number;
  }

  /// Gives every rank all rows of x `[m, n]`, of which each has written its share(m). x is dense,
  /// else std::invalid_argument.
  void gather_rows(MatrixView<float> x) const {
    if (x.stride != x.cols)
      dllm_cache::base::refuse_argument("Ranks: x must be dense, got [", x.rows, ", ", x.cols,
                                        "] with stride ", x.stride);
    MPI_Datatype row = MPI_DATATYPE_NULL;  // counts are 32 bits wide: they count rows
    MPI_Type_contiguous(static_cast<int>(x.cols), MPI_FLOAT, &row);
    MPI_Type_commit(&row);
    std::vector<int> counts, places;
    for (int other = 0; other < m_size; ++other) {
      const Range rows = share(x.rows, other);
      counts.push_back(static_cast<int>(rows.size()));
      places.push_back(static_cast<int>(rows.begin));
    }
    MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, x.data, counts.data(), places.data(), row,
                   m_communicator);
    MPI_Type_free(&row);
  }

  /// Numbers of the first rank, on every rank.
  [[nodiscard]] std::vector<std::int32_t> of_first(std::span<const std::int32_t> mine) const {
    std::vector<std::int32_t> numbers(mine.begin(), mine.end());
    MPI_Bcast(numbers.data(), static_cast<int>(numbers.size()), MPI_INT32_T, 0, m_communicator);
    return numbers;
  }

 private:
  [[nodiscard]] Range share(Index count, int rank) const {
    return {count * rank / m_size, count * (rank + 1) / m_size};
  }

  template <class T>
  void sum(T* data, Index count, MPI_Datatype type) const {
    if (m_size == 1) return;
    MPI_Aint lower = 0, width = 0;
    MPI_Type_get_extent(type, &lower, &width);
    constexpr Index longest = Index{1} << 30;  // counts are 32 bits wide
    auto* const bytes = reinterpret_cast<std::byte*>(data);
    for (Index begin = 0; begin < count; begin += longest)
      MPI_Allreduce(MPI_IN_PLACE, bytes + begin * width,
                    static_cast<int>(std::min(longest, count - begin)), type, MPI_SUM,
                    m_communicator);
  }

  MPI_Comm m_communicator;
  int m_rank = 0;
  int m_size = 1;
};

}  // namespace tensor_parallel
