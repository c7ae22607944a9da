// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/folder_content.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/checkpoint/quantisation.hpp"
#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

namespace dllm_cache::inline v0_1::models {

/// A checkpoint folder of Hugging Face: config.json and the weights in safetensors files.
///
/// The weights are `model.safetensors`, or, only where that is absent, the shards that the
/// `weight_map` of `model.safetensors.index.json` names (the order of Python's transformers).
/// Opening maps and checks every weights file, but reads their headers only. A copy is cheap and
/// shares the mappings. Const methods may be called from any number of threads.
class CheckpointFolder {
 public:
  /// Opens `folder`.
  ///
  /// Throws std::runtime_error naming the file at fault, and the tensor where there is one: folder,
  /// config.json or weights missing (then with what the folder has instead: weights in other
  /// formats, unfinished downloads); config.json or the index not a JSON object or the weight_map
  /// not a map of strings; a shard named with a path separator or as "." or ".." (only files in the
  /// folder are opened); a shard missing or without a tensor that the index puts there; a
  /// checkpoint that is quantised, as config.json or the name of a tensor says; and whatever
  /// SafetensorsFile and read_json_object refuse.
  explicit CheckpointFolder(std::filesystem::path folder) {
    detail::require_folder(folder);
    auto contents = std::make_shared<Contents>();
    contents->folder = std::move(folder);
    const std::filesystem::path config = contents->folder / "config.json";
    contents->config = read_json_object(config);
    if (const auto how = detail::ConfigQuantisation::describe(contents->config))
      detail::refuse_quantised(config, *how);
    std::error_code error;
    // Links count even when they dangle: the message is then about the file that was meant.
    const std::filesystem::path single = contents->folder / "model.safetensors";
    const std::filesystem::path index = contents->folder / "model.safetensors.index.json";
    if (std::filesystem::symlink_status(single, error).type() !=
        std::filesystem::file_type::not_found) {
      contents->weights = single;
      detail::require_file(single);
      const SafetensorsFile& file = contents->open("model.safetensors");
      for (const Tensor& tensor : file.tensors()) contents->insert(file, tensor);
    } else if (std::filesystem::symlink_status(index, error).type() !=
               std::filesystem::file_type::not_found) {
      contents->weights = index;
      detail::require_file(index);
      contents->read_index();
    } else {
      detail::refuse_file(contents->folder,
                          "expected model.safetensors or model.safetensors.index.json, got neither",
                          detail::other_weights_text(contents->folder),
                          detail::leftovers_text(contents->folder));
    }
    contents->check_names();
    m_contents = std::move(contents);
  }

  /// The folder as it was given.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return m_contents->folder; }

  /// The path of config.json.
  [[nodiscard]] std::filesystem::path config_path() const {
    return m_contents->folder / "config.json";
  }

  /// Reads config.json; refers to config().
  [[nodiscard]] ConfigReader config_reader() const { return {config(), config_path()}; }

  /// The content of config.json, an object.
  [[nodiscard]] const nlohmann::json& config() const noexcept { return m_contents->config; }

  /// The tensor of that name, or nullptr; of a sharded checkpoint those that the index names. Does
  /// not count as reading it: see unread.
  [[nodiscard]] const Tensor* find(std::string_view name) const noexcept {
    const auto found = m_contents->tensors.find(name);
    return found == m_contents->tensors.end() ? nullptr : found->second.place.tensor;
  }

  /// The tensor of that name, which must have exactly that shape ([]: a scalar).
  ///
  /// Throws std::runtime_error naming file, tensor, expected and found shape.
  [[nodiscard]] const Tensor& tensor(std::string_view name,
                                     std::span<const std::int64_t> expected_shape) const {
    return *place(name, expected_shape).tensor;
  }

  /// The same, for `folder.tensor("wte.weight", {vocabulary, width})`.
  [[nodiscard]] const Tensor& tensor(std::string_view name,
                                     std::initializer_list<std::int64_t> expected_shape) const {
    return tensor(name, std::span(expected_shape.begin(), expected_shape.size()));
  }

  /// The same, of type F32, F16 or BF16; throws std::runtime_error for other types, too, and calls
  /// the checkpoint quantised where the type says so.
  [[nodiscard]] const Tensor& weight(std::string_view name,
                                     std::initializer_list<std::int64_t> expected_shape) const {
    const std::span shape(expected_shape.begin(), expected_shape.size());
    // The type first: packed weights have another shape, too, which explains nothing.
    if (const auto found = m_contents->tensors.find(name); found != m_contents->tensors.end()) {
      const auto [file, tensor] = found->second.place;
      if (is_quantised_type(tensor->type))
        detail::refuse_quantised(file->path(), base::text("tensor ", detail::in_quotes(name),
                                                          " of type ", name_of(tensor->type)));
    }
    const auto [file, tensor] = place(name, shape);
    if (!is_float(tensor->type))
      detail::refuse_tensor(file->path(), name, "expected type F32, F16 or BF16, got ",
                            name_of(tensor->type));
    return *tensor;
  }

  /// Names of the tensors in the opened files, sorted, that neither tensor() nor weight() of this
  /// object or a copy has given yet: after a model is loaded, what its loader knows nothing of. Has
  /// tensors of a shard that the index does not name, too.
  ///
  /// May be called beside tensor() and weight() on other threads; what these give meanwhile may or
  /// may not be among the names.
  [[nodiscard]] std::vector<std::string> unread() const {
    std::vector<std::string> names;
    for (const auto& [file_name, file] : m_contents->files)
      for (const Tensor& tensor : file.tensors()) {
        const auto found = m_contents->tensors.find(tensor.name);
        if (found == m_contents->tensors.end() ||
            !found->second.given.load(std::memory_order_relaxed))
          names.push_back(tensor.name);
      }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return names;
  }

  /// Holds everything that this object handed out (tensors, their bytes, the config) alive, for a
  /// model that outlives the folder object.
  [[nodiscard]] std::shared_ptr<const void> lifetime() const noexcept { return m_contents; }

 private:
  struct Place {
    const SafetensorsFile* file;
    const Tensor* tensor;
  };
  struct Entry {
    explicit Entry(Place at) : place(at) {}
    Place place;
    mutable std::atomic<bool> given = false;  // for unread; const methods run on any thread
  };

  [[nodiscard]] Place place(std::string_view name,
                            std::span<const std::int64_t> expected_shape) const {
    const auto found = m_contents->tensors.find(name);
    if (found == m_contents->tensors.end())
      detail::refuse_tensor(m_contents->weights, name, "expected shape ",
                            shape_text(expected_shape), ", got no such tensor");
    const auto& [file, tensor] = found->second.place;
    if (!std::equal(expected_shape.begin(), expected_shape.end(), tensor->shape.begin(),
                    tensor->shape.end()))
      detail::refuse_tensor(file->path(), name, "expected shape ", shape_text(expected_shape),
                            ", got ", shape_text(tensor->shape));
    found->second.given.store(true, std::memory_order_relaxed);
    return found->second.place;
  }

  // Shared by copies and lifetimes; built in place and never moved, because `tensors` points into
  // `files`.
  struct Contents {
    // NOLINTNEXTLINE(bugprone-exception-escape): of members whose constructors do not throw
    Contents() = default;
    Contents(const Contents&) = delete;
    Contents& operator=(const Contents&) = delete;
    ~Contents() = default;

    std::filesystem::path folder;
    std::filesystem::path weights;  // model.safetensors or the index, for messages
    nlohmann::json config;
    std::map<std::string, SafetensorsFile> files;  // by file name
    std::map<std::string_view, Entry> tensors;     // by tensor name, which the file keeps

    const SafetensorsFile& open(const std::string& file_name) {
      const auto found = files.find(file_name);
      if (found != files.end()) return found->second;
      return files.try_emplace(file_name, folder / file_name).first->second;
    }

    void insert(const SafetensorsFile& file, const Tensor& tensor) {
      tensors.try_emplace(tensor.name, Place{&file, &tensor});
    }

    void read_index() {
      const nlohmann::json index = read_json_object(weights);
      const auto weight_map = index.find("weight_map");
      if (weight_map == index.end() || !weight_map->is_object())
        detail::refuse_file(weights, "weight_map: expected an object, got ",
                            weight_map == index.end() ? "none" : detail::json_text(*weight_map));
      std::set<std::string> shards;
      for (const auto& [name, shard] : weight_map->items()) {
        if (!shard.is_string() || !is_file_name(shard.get_ref<const std::string&>()))
          detail::refuse_tensor(weights, name,
                                "weight_map: expected the name of a file in this folder, got ",
                                detail::json_text(shard));
        shards.insert(shard.get<std::string>());
      }
      require_shards(shards);
      for (const auto& [name, shard] : weight_map->items()) {
        const SafetensorsFile& file = open(shard.get_ref<const std::string&>());
        const Tensor* const tensor = file.find(name);
        if (tensor == nullptr)
          detail::refuse_tensor(file.path(), name, "expected here by ",
                                detail::in_quotes(weights.filename().string()),
                                ", got no such tensor: index and shard do not belong together");
        insert(file, *tensor);
      }
    }

    // Refuses an index of which a file is missing, before others are opened: how many are missing
    // tells more than what is wrong with the first.
    void require_shards(const std::set<std::string>& shards) const {
      std::vector<std::string> missing;
      for (const std::string& shard : shards) {
        std::error_code error;
        if (std::filesystem::status(folder / shard, error).type() ==
            std::filesystem::file_type::not_found)
          missing.push_back(shard);
      }
      if (missing.empty()) return;
      detail::require_file(
          folder / missing.front(),
          base::text(": ", missing.size(), " of the ", shards.size(), " files that ",
                     detail::in_quotes(weights.filename().string()), " names ",
                     missing.size() == 1 ? "is missing" : "are missing",
                     missing.size() == 1 ? "" : " (" + detail::list_text(missing) + ")"));
    }

    // Refuses weights beside which lie the scales or codes of a quantisation.
    void check_names() const {
      for (const auto& [name, entry] : tensors)
        if (const auto what = detail::quantisation_of_name(name))
          detail::refuse_quantised(entry.place.file->path(),
                                   base::text("tensor ", detail::in_quotes(name), ", ", *what));
    }

    // Whether `name` stays inside the folder. A downloaded index is not to be trusted with paths; a
    // NUL would end the name early for the system.
    [[nodiscard]] static bool is_file_name(const std::string& name) {
      return !name.empty() && name != "." && name != ".." &&
             name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    }
  };

  std::shared_ptr<const Contents> m_contents;
};

}  // namespace dllm_cache::inline v0_1::models
