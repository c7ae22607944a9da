/* SPDX-License-Identifier: Apache-2.0 */
/* A runtime in C with keys, values and deltas of its own, in memory that stands for a device: every
   policy of the table decodes on it. docs/inside-your-runtime.md quotes it. */
#include "dllm_cache/c_api.h"

#include <math.h>

#include "check.h"

enum { LAYERS = 4, WIDTH = 16, VOCABULARY = 40, MASK = 39, PROMPT = 12, RESPONSE = 24, BLOCK = 8 };
enum { ROWS = PROMPT + RESPONSE };

/* The device: weights, and one cell a row and layer of what it computed last. */
typedef struct device {
  float embedding[VOCABULARY][WIDTH];
  float query[LAYERS][WIDTH][WIDTH], key[LAYERS][WIDTH][WIDTH], value[LAYERS][WIDTH][WIDTH];
  float output[LAYERS][WIDTH][WIDTH];
  float keys[LAYERS][ROWS][WIDTH], values[LAYERS][ROWS][WIDTH], deltas[LAYERS][ROWS][WIDTH];
  dllm_sizes built; /* what its graph was built for */
  int graphs_built, breaks_in;
} device;

static float next_weight(unsigned* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(*state >> 8) / (float)(1 << 23) - 1.0F;
}

static void fill(float* weights, size_t count, float scale, unsigned* state) {
  size_t i;
  for (i = 0; i < count; ++i) weights[i] = scale * next_weight(state);
}

static void start(device* d) {
  unsigned state = 5;
  memset(d, 0, sizeof *d);
  fill(&d->embedding[0][0], VOCABULARY * WIDTH, 2.0F, &state);
  fill(&d->query[0][0][0], LAYERS * WIDTH * WIDTH, 0.4F, &state);
  fill(&d->key[0][0][0], LAYERS * WIDTH * WIDTH, 0.4F, &state);
  fill(&d->value[0][0][0], LAYERS * WIDTH * WIDTH, 0.4F, &state);
  fill(&d->output[0][0][0], LAYERS * WIDTH * WIDTH, 0.9F, &state);
  /* A row that is read before it was computed is found. */
  memset(d->keys, 0xff, sizeof d->keys);
  memset(d->values, 0xff, sizeof d->values);
  memset(d->deltas, 0xff, sizeof d->deltas);
}

static float dot(const float* a, const float* b) {
  float sum = 0.0F;
  int i;
  for (i = 0; i < WIDTH; ++i) sum += a[i] * b[i];
  return sum;
}

static void product(float weights[WIDTH][WIDTH], const float* in, float* out) {
  int i;
  for (i = 0; i < WIDTH; ++i) out[i] = dot(weights[i], in);
}

static dllm_sums sums_of(const float* fresh, const float* stored) {
  dllm_sums sums = {0};
  int i;
  for (i = 0; i < WIDTH; ++i) {
    sums.dot += (double)fresh[i] * stored[i];
    sums.fresh_square += (double)fresh[i] * fresh[i];
    sums.stored_square += (double)stored[i] * stored[i];
  }
  return sums;
}

static void embed(device* d, const dllm_step* step, const int32_t* tokens, float x[][WIDTH]) {
  int32_t i, j;
  for (i = 0; i < step->row_count; ++i)
    for (j = 0; j < WIDTH; ++j)
      x[i][j] = d->embedding[tokens[step->rows[i]]][j] +
                0.5F * sinf((float)(step->positions[i] * (j + 1)));
}

/* The delta of one row, over the keys and values of rows [0, key_end) that exist. */
static void attend(device* d, int layer, const float* x, const dllm_step* step, int32_t key_end,
                   float* delta) {
  float query[WIDTH], seen[WIDTH] = {0}, sum = 0.0F;
  const int32_t end = step->seen != NULL ? step->seen_count : key_end;
  int32_t key;
  int i;
  product(d->query[layer], x, query);
  for (key = 0; key < end; ++key) {
    const int32_t row = step->seen != NULL ? step->seen[key] : key;
    float weight;
    if (row >= key_end) break;
    weight = expf(fminf(dot(query, d->keys[layer][row]) / 4.0F, 20.0F));
    sum += weight;
    for (i = 0; i < WIDTH; ++i) seen[i] += weight * d->values[layer][row][i];
  }
  for (i = 0; i < WIDTH; ++i) seen[i] /= sum;
  product(d->output[layer], seen, delta);
}

// [layers]
/* One layer of a step; x has a row for each row in the pass. */
static dllm_status run_layer(device* d, int layer, const dllm_step* step, float x[][WIDTH]) {
  const int is_cached = step->first_cached <= layer && layer < step->end_cached;
  const dllm_rows* of = is_cached ? &step->cached : &step->plain;
  dllm_sums sums[ROWS];
  int32_t again[ROWS]; /* entries of `of` that are recomputed */
  size_t count = 0;
  int32_t i;
  int j;

  /* Values of all its rows: compared with the stored ones first where they are verified. */
  for (i = 0; i < of->count; ++i) {
    float fresh[WIDTH], *stored = d->values[layer][of->rows[i]];
    product(d->value[layer], x[of->places[i]], fresh);
    if (i < of->verified) sums[i] = sums_of(fresh, stored);
    memcpy(stored, fresh, sizeof fresh);
  }
  /* The verified rows that changed most, and those that are recomputed in any case. */
  if (of->verified > 0) {
    const int32_t most = step->layer_counts ? step->layer_counts[layer] : step->verify_count;
    const dllm_status status = dllm_select(sums, (size_t)of->verified, (size_t)most,
                                           step->similarity_threshold, again, &count);
    if (status != DLLM_OK) return status;
  }
  for (i = of->verified; i < of->count; ++i) again[count++] = i;

  /* All keys are stored before any row attends. */
  for (i = 0; i < (int32_t)count; ++i)
    product(d->key[layer], x[of->places[again[i]]], d->keys[layer][of->rows[again[i]]]);
  for (i = 0; i < (int32_t)count; ++i) {
    const int32_t place = of->places[again[i]];
    attend(d, layer, x[place], step, step->key_ends[place], d->deltas[layer][of->rows[again[i]]]);
  }
  /* Every row in the pass adds its delta, fresh or stored. */
  for (i = 0; i < step->row_count; ++i)
    for (j = 0; j < WIDTH; ++j) x[i][j] += d->deltas[layer][step->rows[i]][j];
  return DLLM_OK;
}
// [layers]

/* Stands for building a graph of these shapes. */
static void build_graph(device* d) { ++d->graphs_built; }

// [graph]
/* The graph of the last step serves this one where no shape differs; only lists are uploaded. */
static void prepare_graph(device* d, const dllm_step* step) {
  if (memcmp(&d->built, &step->sizes, sizeof d->built) == 0) return;
  build_graph(d);
  d->built = step->sizes;
}
// [graph]

/* All layers; fails in the middle when it was told to. */
static dllm_status run_layers(device* d, const dllm_step* step, float x[][WIDTH]) {
  int layer;
  for (layer = 0; layer < LAYERS; ++layer) {
    const dllm_status status = run_layer(d, layer, step, x);
    if (status != DLLM_OK) return status;
    if (layer == 1 && d->breaks_in > 0 && --d->breaks_in == 0) return DLLM_UNKNOWN;
  }
  return DLLM_OK;
}

/* The likeliest token of a row, how sure it is, and the entropy of all. */
static int32_t sample(device* d, const float* x, float* confidence, float* entropy) {
  float best = -INFINITY, sum = 0.0F, mean = 0.0F;
  int32_t token = 0, one;
  for (one = 0; one < MASK; ++one) {
    const float logit = dot(x, d->embedding[one]);
    CHECK(logit == logit);
    sum += expf(logit);
    mean += expf(logit) * logit;
    if (logit > best) {
      best = logit;
      token = one;
    }
  }
  *confidence = expf(best) / sum;
  *entropy = logf(sum) - mean / sum;
  return token;
}

/* What is known of each row. */
typedef struct sequence {
  int32_t tokens[ROWS];
  uint8_t masked[ROWS], changed[ROWS];
  uint16_t unchanged_steps[ROWS];
  uint8_t candidates[ROWS];
  float confidence[ROWS], entropy[ROWS];
} sequence;

static void begin_sequence(sequence* s) {
  int i;
  memset(s, 0, sizeof *s);
  for (i = 0; i < ROWS; ++i) {
    s->tokens[i] = i < PROMPT ? 7 * i % 31 : MASK;
    s->masked[i] = i >= PROMPT;
    s->unchanged_steps[i] = 65535;
  }
}

// [step]
/* One step in the block that begins at `begin`: commits the surest of its masked rows. */
static dllm_status denoise(device* d, dllm_planner* planner, sequence* s, int32_t begin,
                           int32_t block_step) {
  dllm_step_input input = {.size = sizeof input,
                           .block_begin = begin,
                           .block_end = begin + BLOCK,
                           .block_step = block_step,
                           .masked = s->masked,
                           .changed = s->changed,
                           .confidence = s->confidence,
                           .unchanged_steps = s->unchanged_steps,
                           .candidates = s->candidates,
                           .entropy = s->entropy};
  dllm_step step = {.size = sizeof step};
  float x[ROWS][WIDTH];
  int32_t i, surest = -1, token = MASK;

  dllm_status status;
  for (i = 0; i < ROWS; ++i) s->candidates[i] = s->masked[i] && i >= begin && i < begin + BLOCK;
  status = dllm_step_begin(planner, &input, &step);
  if (status != DLLM_OK) return status; /* no step is open */
  prepare_graph(d, &step);
  embed(d, &step, s->tokens, x);
  status = run_layers(d, &step, x);
  if (status != DLLM_OK) {
    dllm_step_drop(planner); /* cells are a mixture: the next step computes all of them */
    return status;
  }
  status = dllm_step_commit(planner);
  if (status != DLLM_OK) return status;

  for (i = 0; i < ROWS; ++i) {
    s->changed[i] = 0;
    if (s->unchanged_steps[i] < 65535) ++s->unchanged_steps[i];
  }
  for (i = 0; i < step.row_count; ++i) { /* logits of these rows alone are wanted */
    const int32_t row = step.rows[i];
    int32_t likeliest;
    if (row < begin || row >= begin + BLOCK || !s->masked[row]) continue;
    likeliest = sample(d, x[i], &s->confidence[row], &s->entropy[row]);
    if (surest >= 0 && s->confidence[row] <= s->confidence[surest]) continue;
    surest = row;
    token = likeliest;
  }
  if (surest < 0) return DLLM_OK; /* none of them was in the pass */
  s->tokens[surest] = token;
  s->masked[surest] = 0;
  s->changed[surest] = 1;
  s->unchanged_steps[surest] = 0;
  return DLLM_OK;
}
// [step]

/* Steps [first, last) of a generation, one token a step. */
static void decode(device* d, dllm_planner* planner, sequence* s, int32_t first, int32_t last) {
  int32_t step;
  for (step = first; step < last; ++step)
    CHECK(denoise(d, planner, s, PROMPT + step / BLOCK * BLOCK, step % BLOCK) == DLLM_OK);
}

static dllm_planner* plan_with(const char* policy, const char* options, int32_t attention_block) {
  // [create]
  dllm_shape shape = {.size = sizeof shape,
                      .prompt = PROMPT,
                      .response = RESPONSE,
                      .attention_block = attention_block,
                      .attention_phase = attention_block ? PROMPT : 0,
                      .hides_rows = 1}; /* attend() leaves them out */
  dllm_planner* planner = NULL;
  if (dllm_planner_create(policy, options, &shape, LAYERS, &planner) != DLLM_OK) {
    fprintf(stderr, "%s\n", dllm_last_error());
    return NULL;
  }
  // [create]
  return planner;
}

static dllm_planner_info info_of(const dllm_planner* planner) {
  dllm_planner_info info = {.size = sizeof info};
  CHECK(dllm_planner_get_info(planner, &info) == DLLM_OK);
  return info;
}

/* A whole generation; answers its work. */
static dllm_counts generate(const char* policy, const char* options, int32_t attention_block,
                            int32_t* tokens, int* graphs) {
  static device d;
  sequence s;
  dllm_planner* planner = plan_with(policy, options, attention_block);
  dllm_counts counts;
  int i;
  CHECK(planner != NULL);
  start(&d);
  begin_sequence(&s);
  decode(&d, planner, &s, 0, RESPONSE);
  counts = info_of(planner).counts;
  CHECK(info_of(planner).step == RESPONSE);
  dllm_planner_destroy(planner);
  for (i = 0; i < ROWS; ++i) CHECK(s.tokens[i] != MASK);
  memcpy(tokens, s.tokens, sizeof s.tokens);
  if (graphs != NULL) *graphs = d.graphs_built;
  return counts;
}

static void every_policy_decodes(void) {
  int32_t uncached[ROWS], tokens[ROWS];
  size_t i, refused = 0;
  const dllm_counts whole = generate("none", NULL, 0, uncached, NULL);
  CHECK(whole.rows == ROWS * RESPONSE && whole.recomputed == whole.rows * LAYERS);
  for (i = 0; i < dllm_policy_count(); ++i) {
    dllm_policy_info policy = {.size = sizeof policy};
    dllm_counts counts;
    int row, same = 0, graphs = 0;
    CHECK(dllm_policy_at(i, &policy) == DLLM_OK);
    if (!policy.listed) {
      CHECK(plan_with(policy.name, "", 0) == NULL);
      ++refused;
      continue;
    }
    /* This model is sure of nothing. */
    counts = generate(policy.name, strcmp(policy.name, "entropy") == 0 ? "entropy_threshold=9" : "",
                      0, tokens, &graphs);
    for (row = PROMPT; row < ROWS; ++row) same += tokens[row] == uncached[row];
    printf("%-12s %4d rows, %5d values, %5d recomputed, %d graphs, %d of %d tokens the same\n",
           policy.name, (int)counts.rows, (int)counts.values, (int)counts.recomputed, graphs, same,
           RESPONSE);
    if (strcmp(policy.policy, "none") != 0 && strcmp(policy.policy, "block") != 0) {
      CHECK(counts.recomputed < whole.recomputed);
      CHECK(graphs > 1);
    } else {
      CHECK(same == RESPONSE && graphs == 1);
    }
  }
  CHECK(refused == 4); /* those that decide between layers or verify features of their own */
}

static void exact_settings_give_the_uncached_tokens(void) {
  int32_t uncached[ROWS], tokens[ROWS];
  dllm_counts whole, counts;
  generate("none", NULL, 0, uncached, NULL);
  /* All rows recomputed. */
  generate("block-verify", "prompt_interval=1,response_interval=1", 0, tokens, NULL);
  CHECK(memcmp(tokens, uncached, sizeof tokens) == 0);
  /* All rows verified, all of them selected. */
  generate("block-verify",
           "prompt_interval=1,ratio=1,similarity_threshold=none,refresh_first_layer=false", 0,
           tokens, NULL);
  CHECK(memcmp(tokens, uncached, sizeof tokens) == 0);
  /* Finished blocks kept. */
  whole = generate("none", NULL, BLOCK, uncached, NULL);
  counts = generate("block", NULL, BLOCK, tokens, NULL);
  CHECK(memcmp(tokens, uncached, sizeof tokens) == 0);
  CHECK(counts.rows < whole.rows / 2);
}

static void a_step_that_breaks_is_dropped(void) {
  static device d;
  sequence s;
  dllm_planner* planner = plan_with("dual", NULL, 0);
  start(&d);
  begin_sequence(&s);
  decode(&d, planner, &s, 0, 5);
  d.breaks_in = 1;
  CHECK(denoise(&d, planner, &s, PROMPT, 5) == DLLM_UNKNOWN);
  CHECK(info_of(planner).stale == 1 && info_of(planner).step == 5);
  CHECK(info_of(planner).step_open == 0);
  memset(d.values, 0xff, sizeof d.values); /* nothing of it is read again */
  memset(d.keys, 0xff, sizeof d.keys);
  memset(d.deltas, 0xff, sizeof d.deltas);
  decode(&d, planner, &s, 5, RESPONSE);
  CHECK(info_of(planner).step == RESPONSE);
  dllm_planner_destroy(planner);
}

static void a_saved_sequence_goes_on_elsewhere(void) {
  static device first, second;
  sequence s, other;
  dllm_planner *planner = plan_with("dual", NULL, 0), *restored = plan_with("dual", NULL, 0);
  size_t needed = 0;
  void* bytes;
  start(&first);
  begin_sequence(&s);
  decode(&first, planner, &s, 0, 11);
  other = s;
  // [save]
  CHECK(dllm_planner_save(planner, NULL, 0, &needed) == DLLM_OK); /* how many bytes? */
  bytes = malloc(needed);
  CHECK(dllm_planner_save(planner, bytes, needed, &needed) == DLLM_OK);
  CHECK(dllm_planner_restore(restored, bytes, needed) == DLLM_OK); /* next: a plain forward */
  // [save]
  free(bytes);
  CHECK(info_of(restored).step == 11 && info_of(restored).stale == 1);
  CHECK(info_of(restored).counts.rows == info_of(planner).counts.rows);
  start(&second);
  decode(&second, restored, &other, 11, RESPONSE);
  /* The same as where it was, once features there are said to be stale. */
  CHECK(dllm_planner_mark_stale(planner) == DLLM_OK);
  decode(&first, planner, &s, 11, RESPONSE);
  CHECK(memcmp(s.tokens, other.tokens, sizeof s.tokens) == 0);
  CHECK(info_of(restored).counts.recomputed == info_of(planner).counts.recomputed);
  dllm_planner_destroy(planner);
  dllm_planner_destroy(restored);
}

int main(int argc, char** argv) {
  const char* name = argc == 2 ? argv[1] : "";
  if (strcmp(name, "policies") == 0)
    every_policy_decodes();
  else if (strcmp(name, "exact") == 0)
    exact_settings_give_the_uncached_tokens();
  else if (strcmp(name, "drop") == 0)
    a_step_that_breaks_is_dropped();
  else if (strcmp(name, "save") == 0)
    a_saved_sequence_goes_on_elsewhere();
  else
    return EXIT_FAILURE;
  return EXIT_SUCCESS;
}
