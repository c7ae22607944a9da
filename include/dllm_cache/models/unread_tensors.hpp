// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/tensor_names.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// What names of tensors end with that are computed anew when a model is loaded.
inline constexpr std::array<std::string_view, 8> buffer_endings = {
    "rotary_emb.inv_freq",     "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",   "rotary_emb.sin_cached",
    "attn.masked_bias",        "attn.bias",
    "rotary_pos_emb.inv_freq", "position_ids"};

/// Looks at the tensors of a checkpoint that were not read. A tensor of a layer is part of the
/// computation: it is refused. Others (the vision tower of a multimodal checkpoint, say) give a
/// warning. Buffers, and the copy of a tied head, mean nothing.
///
/// Throws std::runtime_error naming the first such tensor of a layer.
[[nodiscard]] inline std::optional<std::string> check_unread(const CheckpointFolder& folder,
                                                             const TensorNames& names, bool tied) {
  Index count = 0;
  std::string first;
  for (const std::string& name : folder.unread()) {
    if (tied && name == std::string(names.head) + ".weight") continue;
    if (std::any_of(buffer_endings.begin(), buffer_endings.end(),
                    [&](std::string_view ending) { return name.ends_with(ending); }))
      continue;
    if (name.starts_with(names.layers))
      refuse_tensor(folder.path(), name,
                    "this tensor of a layer is not computed: the checkpoint's layers are of "
                    "another kind, or more of them than config.json says");
    if (count++ == 0) first = name;
  }
  if (count == 0) return std::nullopt;
  return base::text(path_text(folder.path()), ": ", count,
                    count == 1 ? " tensor is not read: " : " tensors are not read, the first is ",
                    in_quotes(first));
}

}  // namespace dllm_cache::inline v0_1::models::detail
