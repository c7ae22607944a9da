/* SPDX-License-Identifier: Apache-2.0 */
/* Every function of the C interface: what it gives, and every way in which it refuses. */
#include "dllm_cache/c_api.h"

#include <math.h>

#include "check.h"

static dllm_shape shape_of(int64_t prompt, int64_t response) {
  dllm_shape shape = {.size = sizeof shape, .prompt = prompt, .response = response};
  return shape;
}

static dllm_planner* planner_of(const char* policy, const char* options, dllm_shape shape) {
  dllm_planner* planner = NULL;
  CHECK(dllm_planner_create(policy, options, &shape, 3, &planner) == DLLM_OK);
  CHECK(planner != NULL);
  return planner;
}

static dllm_planner_info info_of(const dllm_planner* planner) {
  dllm_planner_info info = {.size = sizeof info};
  CHECK(dllm_planner_get_info(planner, &info) == DLLM_OK);
  return info;
}

static dllm_step_input block_of(int64_t begin, int64_t end) {
  dllm_step_input input = {.size = sizeof input, .block_begin = begin, .block_end = end};
  return input;
}

static dllm_step begun(dllm_planner* planner, const dllm_step_input* input) {
  dllm_step step = {.size = sizeof step};
  CHECK(dllm_step_begin(planner, input, &step) == DLLM_OK);
  return step;
}

static int same(const int32_t* list, int32_t count, const int32_t* wanted, size_t wanted_count) {
  return (size_t)count == wanted_count && memcmp(list, wanted, wanted_count * sizeof *wanted) == 0;
}
#define IS(list, count, ...)                                  \
  CHECK(same((list), (count), (const int32_t[]){__VA_ARGS__}, \
             sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)))

static void lists_of_a_step(void) {
  static const int32_t positions[] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  dllm_shape shape = shape_of(4, 6);
  dllm_planner* planner;
  dllm_step_input input = block_of(4, 7);
  dllm_step step;
  shape.positions = positions;
  planner = planner_of("block-verify", "ratio=0.5, similarity_threshold=0.9", shape);
  CHECK(strcmp(info_of(planner).policy, "block-verify") == 0);
  CHECK(info_of(planner).stored_deltas_begin == 4 && info_of(planner).stored_deltas_end == 10);
  CHECK(info_of(planner).rows == 10 && info_of(planner).layers == 3);
  CHECK(info_of(planner).keeps_features == 1 && info_of(planner).needs_block == 1);

  /* The first step recomputes everything. */
  step = begun(planner, &input);
  CHECK(info_of(planner).step_open == 1 && info_of(planner).stale == 1);
  IS(step.rows, step.row_count, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9);
  IS(step.positions, step.row_count, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
  IS(step.key_ends, step.row_count, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10);
  CHECK(step.cached.count == 10 && step.cached.verified == 0);
  CHECK(step.counts.recomputed == 30);
  CHECK(dllm_step_commit(planner) == DLLM_OK);

  /* Then the block, and one of the other response rows. */
  step = begun(planner, &input);
  IS(step.rows, step.row_count, 4, 5, 6, 7, 8, 9);
  IS(step.positions, step.row_count, 9, 10, 11, 12, 13, 14);
  IS(step.cached.rows, step.cached.count, 7, 8, 9, 4, 5, 6);
  IS(step.cached.places, step.cached.count, 3, 4, 5, 0, 1, 2);
  CHECK(step.cached.verified == 3 && step.plain.verified == 0);
  IS(step.plain.rows, step.plain.count, 4, 5, 6, 7, 8, 9);
  IS(step.plain.places, step.plain.count, 0, 1, 2, 3, 4, 5);
  CHECK(step.first_cached == 1 && step.end_cached == 3 && step.layers == 3);
  CHECK(step.verify_count == 1 && step.similarity_threshold == 0.9 && step.keys == 10);
  CHECK(step.sizes.rows == 6 && step.sizes.verified == 3 && step.sizes.verify_count == 1);
  CHECK(step.sizes.recomputed == 3 && step.sizes.first_cached == 1 && step.sizes.end_cached == 3);
  CHECK(step.sizes.keys == 10 && step.sizes.threshold == 1);
  CHECK(step.counts.rows == 6 && step.counts.values == 18 && step.counts.recomputed == 14);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  CHECK(info_of(planner).step == 2 && info_of(planner).counts.rows == 16);
  CHECK(info_of(planner).counts.values == 48 && info_of(planner).counts.recomputed == 44);
  dllm_planner_destroy(planner);

  /* Block-causal attention: rows exist to the end of their block, and see no further. */
  shape = shape_of(4, 8);
  shape.attention_block = 4;
  planner = planner_of("block", NULL, shape);
  input = block_of(4, 8);
  step = begun(planner, &input);
  IS(step.key_ends, step.row_count, 4, 4, 4, 4, 8, 8, 8, 8);
  CHECK(step.keys == 8 && step.sizes.threshold == 0 && isinf(step.similarity_threshold));
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  input.block_done = 1; /* stores the block, and is a step of rows 4 to 7 alone */
  step = begun(planner, &input);
  IS(step.rows, step.row_count, 4, 5, 6, 7);
  dllm_planner_destroy(planner); /* with its step open */

  /* Finished rows are causal. */
  shape.causal_commit = 1;
  planner = planner_of("block", NULL, shape);
  input = block_of(4, 8);
  step = begun(planner, &input);
  IS(step.key_ends, step.row_count, 1, 2, 3, 4, 8, 8, 8, 8);
  dllm_planner_destroy(planner);
}

static void inputs_that_policies_need(void) {
  static const uint8_t flags[] = {0, 0, 0, 0, 1, 1, 1, 1, 1, 1};
  static const uint8_t none[10] = {0}, filled[] = {1, 1, 1, 1, 0, 0, 0, 0, 1, 1};
  static const uint16_t unchanged[] = {9, 9, 9, 9, 0, 1, 2, 3, 4, 5};
  static const float confidence[10] = {0};
  dllm_planner* planner = planner_of("changed-rows", NULL, shape_of(4, 6));
  dllm_step_input input = {.size = sizeof input};
  dllm_step step = {.size = sizeof step};
  CHECK(info_of(planner).needs_masked == 1 && info_of(planner).needs_confidence == 0);
  CHECK(info_of(planner).needs_unchanged_steps == 1 || info_of(planner).needs_changed == 1);
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT,
          "masked must be given, policy changed-rows needs it");
  CHECK(info_of(planner).step_open == 0);
  input.masked = input.changed = flags;
  input.unchanged_steps = unchanged;
  input.confidence = confidence;
  input.given = flags;
  CHECK(dllm_step_begin(planner, &input, &step) == DLLM_OK);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  CHECK(dllm_step_begin(planner, &input, &step) == DLLM_OK);
  CHECK(step.row_count < 10);
  dllm_planner_destroy(planner);

  planner = planner_of("changed-rows", "keep_active=2", shape_of(4, 6));
  CHECK(info_of(planner).needs_unchanged_steps == 1 && info_of(planner).needs_changed == 1);
  input = block_of(0, 0);
  input.masked = input.changed = none;
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT, "unchanged_steps must");
  input.unchanged_steps = unchanged;
  CHECK(dllm_step_begin(planner, &input, &step) == DLLM_OK);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  CHECK(dllm_step_begin(planner, &input, &step) == DLLM_OK);
  IS(step.rows, step.row_count, 4, 5, 6);
  dllm_planner_destroy(planner);

  /* Nothing is to be found at rows that were given: none of them is selected. */
  planner = planner_of("block-verify", "ratio=1", shape_of(4, 6));
  input = block_of(4, 7);
  begun(planner, &input);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  CHECK(begun(planner, &input).verify_count == 3);
  CHECK(dllm_step_cancel(planner) == DLLM_OK);
  input.given = filled;
  CHECK(begun(planner, &input).verify_count == 1);
  dllm_planner_destroy(planner);

  planner = planner_of("dual", NULL, shape_of(4, 6));
  input = block_of(0, 0);
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT, "block must be given");
  input = block_of(4, 11);
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT,
          "block must lie in [0, 10), got [4, 11)");
  input = block_of(4, 6);
  input.block_step = -1;
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT, "block_step");
  input.block_step = 0;
  input.block_done = 2;
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT,
          "block_done must be 0 or 1, got 2");
  dllm_planner_destroy(planner);
}

static void calls_out_of_order(void) {
  dllm_planner *planner = planner_of("dual", NULL, shape_of(4, 6)), *copy = NULL;
  const dllm_shape shape = shape_of(4, 6);
  const dllm_step_input input = block_of(4, 6);
  dllm_step step = {.size = sizeof step};
  char bytes[512];
  size_t needed = 0;
  REFUSED(dllm_step_commit(planner), DLLM_INVALID_CALL, "without an open step");
  step = begun(planner, &input);
  REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_CALL, "while a step is open");
  REFUSED(dllm_planner_reset(planner, &shape), DLLM_INVALID_CALL, "while a step is open");
  REFUSED(dllm_planner_reshape(planner, &shape, 4), DLLM_INVALID_CALL, "while a step is open");
  REFUSED(dllm_planner_mark_stale(planner), DLLM_INVALID_CALL, "while a step is open");
  REFUSED(dllm_planner_clone(planner, &copy), DLLM_INVALID_CALL, "while a step is open");
  REFUSED(dllm_planner_save(planner, bytes, sizeof bytes, &needed), DLLM_INVALID_CALL, "open");
  REFUSED(dllm_planner_restore(planner, bytes, sizeof bytes), DLLM_INVALID_CALL, "open");
  CHECK(copy == NULL && step.rows[9] == 9); /* the lists are as they were */

  /* Cancelled: no trace. Committed: not stale. Dropped: stale, and not counted. */
  CHECK(dllm_step_cancel(planner) == DLLM_OK && info_of(planner).step == 0);
  CHECK(dllm_step_cancel(planner) == DLLM_OK);
  begun(planner, &input);
  CHECK(dllm_step_commit(planner) == DLLM_OK && info_of(planner).stale == 0);
  begun(planner, &input);
  CHECK(dllm_step_cancel(planner) == DLLM_OK && info_of(planner).stale == 0);
  begun(planner, &input);
  CHECK(dllm_step_drop(planner) == DLLM_OK && info_of(planner).stale == 1);
  CHECK(info_of(planner).step == 1 && info_of(planner).counts.rows == 10);
  begun(planner, &input);
  CHECK(dllm_step_commit(planner) == DLLM_OK && info_of(planner).counts.rows == 20);

  /* Copies and new sequences. */
  CHECK(dllm_planner_clone(planner, &copy) == DLLM_OK);
  CHECK(strcmp(info_of(copy).policy, "dual") == 0 && info_of(copy).step == 2);
  CHECK(dllm_planner_mark_stale(copy) == DLLM_OK);
  CHECK(info_of(copy).stale == 1 && info_of(planner).stale == 0);
  CHECK(dllm_planner_reset(planner, &shape) == DLLM_OK);
  CHECK(info_of(planner).step == 0 && info_of(planner).counts.rows == 0);
  CHECK(info_of(copy).step == 2);
  dllm_planner_destroy(planner);
  dllm_planner_destroy(copy);
  dllm_planner_destroy(NULL);
}

static void sequences_that_grow(void) {
  static const int32_t other[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  dllm_shape shape = shape_of(4, 4);
  dllm_planner* planner;
  dllm_step_input input = block_of(4, 8);
  dllm_step step;
  shape.attention_block = 4;
  planner = planner_of("block", NULL, shape);
  begun(planner, &input);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  shape.response = 8;
  REFUSED(dllm_planner_reshape(planner, &shape, 9), DLLM_INVALID_ARGUMENT,
          "keep must be in [0, 8], got 9");
  REFUSED(dllm_planner_reshape(planner, &shape, -1), DLLM_INVALID_ARGUMENT, "keep");
  shape.positions = other;
  REFUSED(dllm_planner_reshape(planner, &shape, 4), DLLM_INVALID_ARGUMENT,
          "positions of kept rows must stay");
  shape.positions = NULL;
  CHECK(info_of(planner).rows == 8);
  CHECK(dllm_planner_reshape(planner, &shape, 4) == DLLM_OK);
  CHECK(info_of(planner).rows == 12 && info_of(planner).step == 1 && !info_of(planner).stale);
  input = block_of(4, 8);
  step = begun(planner, &input);
  IS(step.rows, step.row_count, 4, 5, 6, 7); /* the first block is still stored */
  dllm_planner_destroy(planner);
}

static void selected_rows(void) {
  /* Cosines 0.5, -1, 1, 0.5, NaN. */
  const dllm_sums sums[] = {{1, 1, 4}, {-1, 1, 1}, {1, 1, 1}, {1, 1, 4}, {NAN, 1, 1}};
  int32_t selected[5];
  size_t count = 9;
  CHECK(dllm_select(sums, 5, 3, INFINITY, selected, &count) == DLLM_OK);
  IS(selected, (int32_t)count, 0, 1, 4); /* ties go to the lower row, NaN comes first */
  CHECK(dllm_select(sums, 5, 4, 0.5, selected, &count) == DLLM_OK);
  IS(selected, (int32_t)count, 1, 4);
  CHECK(dllm_select(sums, 5, 5, INFINITY, selected, &count) == DLLM_OK && count == 5);
  CHECK(dllm_select(sums, 5, 0, INFINITY, NULL, &count) == DLLM_OK && count == 0);
  CHECK(dllm_select(NULL, 0, 0, INFINITY, NULL, &count) == DLLM_OK && count == 0);
  REFUSED(dllm_select(sums, 5, 6, INFINITY, selected, &count), DLLM_INVALID_ARGUMENT,
          "count must be in [0, verified = 5], got 6");
  REFUSED(dllm_select(sums, 5, 3, NAN, selected, &count), DLLM_INVALID_ARGUMENT,
          "threshold must be a number");
  REFUSED(dllm_select(sums, (size_t)1 << 31, 3, INFINITY, selected, &count), DLLM_INVALID_ARGUMENT,
          "verified must be below 2^31");
  REFUSED(dllm_select(NULL, 5, 3, INFINITY, selected, &count), DLLM_INVALID_ARGUMENT, "sums");
  REFUSED(dllm_select(sums, 5, 3, INFINITY, NULL, &count), DLLM_INVALID_ARGUMENT, "selected");
  REFUSED(dllm_select(sums, 5, 3, INFINITY, selected, NULL), DLLM_INVALID_ARGUMENT, "selected_");
}

static void shapes_and_options(void) {
  dllm_planner* planner = NULL;
  dllm_shape shape = shape_of(4, 6);
  REFUSED(dllm_planner_create("duel", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "policy must be one of none, block,");
  REFUSED(dllm_planner_create("dual", NULL, &shape, 0, &planner), DLLM_INVALID_ARGUMENT,
          "layers must be at least 1, got 0");
  REFUSED(dllm_planner_create("dual", NULL, &shape, (int64_t)1 << 31, &planner),
          DLLM_INVALID_ARGUMENT, "layers must be below 2^31");
  REFUSED(dllm_planner_create("dual", "ratio=0.5", &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "ratio does not belong to policy dual");
  REFUSED(dllm_planner_create("balanced", "ratio=1.5", &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "ratio must be in [0, 1], got 1.5");
  REFUSED(dllm_planner_create("balanced", "ratio=0.5,ratio=0.5", &shape, 3, &planner),
          DLLM_INVALID_ARGUMENT, "options must name ratio once");
  {
    static const char* const malformed[] = {"ratio",      "ratio 0.5",   "=1", "ratio=0.5,",
                                            ",ratio=0.5", "ratio=0.5,,", ",",  " = "};
    size_t i;
    for (i = 0; i < sizeof malformed / sizeof *malformed; ++i)
      REFUSED(dllm_planner_create("balanced", malformed[i], &shape, 3, &planner),
              DLLM_INVALID_ARGUMENT, "options must be \"name=value,name=value\"");
  }
  REFUSED(dllm_planner_create("balanced", "ratio=", &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "ratio must be in [0, 1], got \"\"");
  shape = shape_of(0, 0);
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "at least 1 row");
  shape = shape_of(-1, 6);
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "prompt must be in [0, 2^31], got -1");
  shape = shape_of((int64_t)1 << 31, 0);
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "prompt + response must be below 2^31");
  shape = shape_of(4, 6);
  shape.causal_commit = 3;
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "causal_commit must be 0 or 1, got 3");
  shape.causal_commit = 1;
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
          "causal_commit needs an attention_block");
  CHECK(planner == NULL);
  shape = shape_of(4, 6);
  CHECK(dllm_planner_create("balanced", " ratio = 0.125 , prompt_interval=never ", &shape, 3,
                            &planner) == DLLM_OK);
  dllm_planner_destroy(planner);
  CHECK(dllm_planner_create("balanced", " ", &shape, 3, &planner) == DLLM_OK);
  dllm_planner_destroy(planner);
}

static void null_pointers_and_sizes(void) {
  dllm_planner *planner = planner_of("dual", NULL, shape_of(4, 6)), *made = NULL;
  dllm_shape shape = shape_of(4, 6);
  dllm_step_input input = block_of(4, 6);
  dllm_step step = {.size = sizeof step};
  dllm_planner_info info = {.size = sizeof info};
  dllm_policy_info policy = {.size = sizeof policy};
  dllm_option_info option = {.size = sizeof option};
  char bytes[512];
  size_t needed;
  int i;
  REFUSED(dllm_planner_create(NULL, NULL, &shape, 3, &made), DLLM_INVALID_ARGUMENT,
          "policy must not be null");
  REFUSED(dllm_planner_create("dual", NULL, NULL, 3, &made), DLLM_INVALID_ARGUMENT, "dllm_shape");
  REFUSED(dllm_planner_create("dual", NULL, &shape, 3, NULL), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_clone(NULL, &made), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_clone(planner, NULL), DLLM_INVALID_ARGUMENT, "copy");
  REFUSED(dllm_planner_get_info(NULL, &info), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_get_info(planner, NULL), DLLM_INVALID_ARGUMENT, "dllm_planner_info");
  REFUSED(dllm_planner_reset(NULL, &shape), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_reset(planner, NULL), DLLM_INVALID_ARGUMENT, "dllm_shape");
  REFUSED(dllm_planner_reshape(NULL, &shape, 0), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_reshape(planner, NULL, 0), DLLM_INVALID_ARGUMENT, "dllm_shape");
  REFUSED(dllm_planner_mark_stale(NULL), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_step_begin(NULL, &input, &step), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_step_begin(planner, NULL, &step), DLLM_INVALID_ARGUMENT, "dllm_step_input");
  REFUSED(dllm_step_begin(planner, &input, NULL), DLLM_INVALID_ARGUMENT, "dllm_step");
  REFUSED(dllm_step_commit(NULL), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_step_cancel(NULL), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_step_drop(NULL), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_save(NULL, bytes, sizeof bytes, &needed), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_save(planner, NULL, 9, &needed), DLLM_INVALID_ARGUMENT, "buffer");
  REFUSED(dllm_planner_save(planner, bytes, sizeof bytes, NULL), DLLM_INVALID_ARGUMENT, "needed");
  REFUSED(dllm_planner_restore(NULL, bytes, 9), DLLM_INVALID_ARGUMENT, "planner");
  REFUSED(dllm_planner_restore(planner, NULL, 9), DLLM_INVALID_ARGUMENT, "bytes");
  REFUSED(dllm_policy_at(0, NULL), DLLM_INVALID_ARGUMENT, "dllm_policy_info");
  REFUSED(dllm_option_at(0, 0, NULL), DLLM_INVALID_ARGUMENT, "dllm_option_info");

  /* Sizes that no version has. */
  for (i = -1; i <= 1; i += 2) {
    shape.size = i < 0 ? 0 : sizeof shape + 1;
    input.size = i < 0 ? 0 : sizeof input + 1;
    step.size = i < 0 ? 0 : sizeof step + 1;
    info.size = i < 0 ? 0 : sizeof info + 1;
    policy.size = i < 0 ? 0 : sizeof policy + 1;
    option.size = i < 0 ? 0 : sizeof option + 1;
    REFUSED(dllm_planner_create("dual", NULL, &shape, 3, &made), DLLM_INVALID_ARGUMENT,
            "dllm_shape: size must be in");
    REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT,
            "dllm_step_input: size must be in");
    input.size = sizeof input;
    REFUSED(dllm_step_begin(planner, &input, &step), DLLM_INVALID_ARGUMENT,
            "dllm_step: size must be in");
    REFUSED(dllm_planner_get_info(planner, &info), DLLM_INVALID_ARGUMENT, "size must be in");
    REFUSED(dllm_policy_at(0, &policy), DLLM_INVALID_ARGUMENT, "size must be in");
    REFUSED(dllm_option_at(1, 0, &option), DLLM_INVALID_ARGUMENT, "size must be in");
  }
  CHECK(info_of(planner).step_open == 0 && made == NULL);
  dllm_planner_destroy(planner);
}

static void damaged_snapshots(void) {
  dllm_planner* planner = planner_of("balanced", NULL, shape_of(4, 6));
  const dllm_step_input input = block_of(4, 6);
  unsigned char bytes[1024], damaged[1024];
  size_t needed = 0, saved, i;
  begun(planner, &input);
  CHECK(dllm_step_commit(planner) == DLLM_OK);
  CHECK(dllm_planner_save(planner, NULL, 0, &needed) == DLLM_OK && needed <= sizeof bytes);
  saved = needed;
  needed = 0;
  REFUSED(dllm_planner_save(planner, bytes, saved - 1, &needed), DLLM_INVALID_ARGUMENT,
          "capacity must be at least");
  CHECK(needed == saved);
  CHECK(dllm_planner_save(planner, bytes, sizeof bytes, &needed) == DLLM_OK && needed == saved);
  for (i = 0; i < saved; ++i) { /* every cut and every flipped byte is found, and changes nothing */
    REFUSED(dllm_planner_restore(planner, bytes, i), DLLM_BAD_SNAPSHOT, "snapshot: ");
    memcpy(damaged, bytes, saved);
    damaged[i] ^= 0x15;
    REFUSED(dllm_planner_restore(planner, damaged, saved), DLLM_BAD_SNAPSHOT, "snapshot: ");
  }
  CHECK(info_of(planner).stale == 0 && info_of(planner).step == 1);
  CHECK(dllm_planner_restore(planner, bytes, sizeof bytes) == DLLM_OK);
  CHECK(info_of(planner).stale == 1 && info_of(planner).step == 1);
  CHECK(info_of(planner).counts.rows == 10);
  dllm_planner_destroy(planner);
  planner = planner_of("balanced", "ratio=0.5", shape_of(4, 6));
  REFUSED(dllm_planner_restore(planner, bytes, saved), DLLM_BAD_SNAPSHOT, "policy options");
  dllm_planner_destroy(planner);
  planner = planner_of("dual", NULL, shape_of(4, 6));
  REFUSED(dllm_planner_restore(planner, bytes, saved), DLLM_BAD_SNAPSHOT,
          "policy must be \"dual\", got \"block-verify\"");
  dllm_planner_destroy(planner);
  planner = planner_of("balanced", NULL, shape_of(4, 7));
  REFUSED(dllm_planner_restore(planner, bytes, saved), DLLM_BAD_SNAPSHOT, "response must be 7");
  dllm_planner_destroy(planner);
}

static void policies_and_their_options(void) {
  size_t i, j, presets = 0, options = 0;
  int words = 0;
  CHECK(strchr(dllm_version(), '.') != NULL);
  CHECK(dllm_policy_count() >= 13);
  for (i = 0; i < dllm_policy_count(); ++i) {
    dllm_policy_info policy = {.size = sizeof policy};
    dllm_shape shape = shape_of(4, 6);
    shape.hides_rows = 1;
    CHECK(dllm_policy_at(i, &policy) == DLLM_OK);
    CHECK(policy.name[0] != '\0' && policy.description[0] != '\0');
    presets += strcmp(policy.name, policy.policy) != 0;
    for (j = 0; j < policy.option_count; ++j, ++options) {
      dllm_option_info option = {.size = sizeof option};
      dllm_planner* planner = NULL;
      char text[256];
      CHECK(dllm_option_at(i, j, &option) == DLLM_OK);
      CHECK(option.name[0] != '\0' && option.help[0] != '\0' && option.legal[0] != '\0');
      CHECK(DLLM_FLAG <= option.kind && option.kind <= DLLM_ROWS);
      words += strstr(option.legal, " or never") != NULL;
      if (option.value == NULL) continue;
      /* What it tells is what it takes. */
      snprintf(text, sizeof text, "%s=%s", option.name, option.value);
      if (!policy.listed) {
        REFUSED(dllm_planner_create(policy.name, text, &shape, 3, &planner), DLLM_INVALID_ARGUMENT,
                "which whole steps cannot do here");
        continue;
      }
      CHECK(dllm_planner_create(policy.name, text, &shape, 3, &planner) == DLLM_OK);
      dllm_planner_destroy(planner);
      planner = NULL;
      shape.hides_rows = 0;
      CHECK((dllm_planner_create(policy.name, text, &shape, 3, &planner) == DLLM_OK) ==
            !policy.hides_rows);
      dllm_planner_destroy(planner);
      shape.hides_rows = 1;
    }
    {
      dllm_option_info option = {.size = sizeof option};
      REFUSED(dllm_option_at(i, policy.option_count, &option), DLLM_INVALID_ARGUMENT,
              "must be in [0, ");
    }
  }
  CHECK(presets == 4 && options > 10 && words > 0);
  {
    dllm_policy_info policy = {.size = sizeof policy};
    dllm_option_info option = {.size = sizeof option};
    REFUSED(dllm_policy_at(dllm_policy_count(), &policy), DLLM_INVALID_ARGUMENT, "got index");
    REFUSED(dllm_option_at(dllm_policy_count(), 0, &option), DLLM_INVALID_ARGUMENT, "got index");
  }
}

static void messages(void) {
  dllm_planner* planner = NULL;
  const dllm_shape shape = shape_of(4, 6);
  char name[4000];
  CHECK(dllm_last_error()[0] == '\0');
  REFUSED(dllm_step_commit(NULL), DLLM_INVALID_ARGUMENT, "planner must not be null");
  planner = planner_of("none", NULL, shape); /* what succeeds leaves it */
  CHECK(strcmp(dllm_last_error(), "planner must not be null") == 0);
  dllm_planner_destroy(planner);
  memset(name, 'x', sizeof name);
  name[sizeof name - 1] = '\0';
  REFUSED(dllm_planner_create(name, NULL, &shape, 3, &planner), DLLM_INVALID_ARGUMENT, "xxx");
  CHECK(strlen(dllm_last_error()) == 1023);
  REFUSED(dllm_step_commit(NULL), DLLM_INVALID_ARGUMENT, "planner");
  CHECK(strcmp(dllm_last_error(), "planner must not be null") == 0);
}

int main(int argc, char** argv) {
  static const struct {
    const char* name;
    void (*test)(void);
  } tests[] = {{"lists", lists_of_a_step},
               {"inputs", inputs_that_policies_need},
               {"order", calls_out_of_order},
               {"reshape", sequences_that_grow},
               {"select", selected_rows},
               {"options", shapes_and_options},
               {"null", null_pointers_and_sizes},
               {"snapshots", damaged_snapshots},
               {"table", policies_and_their_options},
               {"messages", messages}};
  size_t i;
  for (i = 0; argc == 2 && i < sizeof tests / sizeof *tests; ++i)
    if (strcmp(argv[1], tests[i].name) == 0) {
      tests[i].test();
      return EXIT_SUCCESS;
    }
  return EXIT_FAILURE;
}
