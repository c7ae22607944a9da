// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reading and writing of safetensors files; includes only.
#include "dllm_cache/models/safetensors_file.hpp"
#include "dllm_cache/models/safetensors_writer.hpp"
#include "dllm_cache/models/tensor.hpp"
