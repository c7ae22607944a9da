// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The whole core; needs Eigen alone.
#include "dllm_cache/eigen.hpp"
#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/large_pages.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/matrix_view.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "dllm_cache/policy.hpp"
#include "dllm_cache/scalar.hpp"
#include "dllm_cache/stats.hpp"
#include "dllm_cache/step_planner.hpp"
#include "dllm_cache/version.hpp"
#include "dllm_cache/vverify_selector.hpp"
#include "dllm_cache/workspace.hpp"
